from .attention_resnet import AttentionResNet, SAResNet
from .channels_last import in_channels_last

__all__ = ['AttentionResNet', 'SAResNet', 'in_channels_last']
