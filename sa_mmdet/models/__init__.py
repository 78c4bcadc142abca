"""Attention layers, the backbones that hold them, and weights for these."""
from .attention import (
    CBAM,
    AttentionLayer,
    EfficientChannelAttention,
    ShuffleAttention,
    SpatialGroupEnhance,
    SqueezeExcitation,
)
from .backbones import AttentionResNet, SAResNet, in_channels_last
from .convert import ConversionError, attention_blocks, convert_state_dict

__all__ = [
    'CBAM', 'AttentionLayer', 'AttentionResNet', 'ConversionError', 'EfficientChannelAttention',
    'SAResNet', 'ShuffleAttention', 'SpatialGroupEnhance', 'SqueezeExcitation', 'attention_blocks',
    'convert_state_dict', 'in_channels_last'
]
