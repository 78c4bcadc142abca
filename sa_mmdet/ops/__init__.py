from .bottleneck_tail import bottleneck_tail
from .shuffle_attention import implementations, shuffle_attention

__all__ = ['bottleneck_tail', 'implementations', 'shuffle_attention']
