from .shuffle_attention import shuffle_attention

__all__ = ['shuffle_attention']
