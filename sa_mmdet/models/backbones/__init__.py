from .attention_resnet import AttentionResNet, SAResNet

__all__ = ['AttentionResNet', 'SAResNet']
