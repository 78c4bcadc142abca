from .shuffle_attention import implementations, shuffle_attention

__all__ = ['implementations', 'shuffle_attention']
