"""The operator: shuffle attention, alone or with what surrounds it in a bottleneck."""
from .dispatch import forget_choices, implementations
from .functional import bottleneck_tail, fused_bn_sa_add_relu, shuffle_attention

__all__ = ['bottleneck_tail', 'forget_choices', 'fused_bn_sa_add_relu', 'implementations',
           'shuffle_attention']
