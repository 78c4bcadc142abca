"""The operator: shuffle attention, alone or fused with what surrounds it in a bottleneck."""
from .dispatch import forget_choices, implementations
from .functional import bottleneck_tail, fused_bn_sa_add_relu, shuffle_attention
from .reference import (
    channel_shuffle,
    fused_bn_sa_add_relu_reference,
    shuffle_attention_reference,
)

__all__ = [
    'bottleneck_tail', 'channel_shuffle', 'forget_choices', 'fused_bn_sa_add_relu',
    'fused_bn_sa_add_relu_reference', 'implementations', 'shuffle_attention',
    'shuffle_attention_reference'
]
