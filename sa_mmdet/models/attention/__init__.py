"""Attention layers: MMDetection plugins, and plain modules to use by hand."""
from .base import AttentionLayer, register_attention
from .cbam import CBAM
from .efficient_channel_attention import EfficientChannelAttention
from .shuffle_attention import ShuffleAttention
from .spatial_group_enhance import SpatialGroupEnhance
from .squeeze_excitation import SqueezeExcitation

__all__ = [
    'CBAM', 'AttentionLayer', 'EfficientChannelAttention', 'ShuffleAttention',
    'SpatialGroupEnhance', 'SqueezeExcitation', 'register_attention'
]
