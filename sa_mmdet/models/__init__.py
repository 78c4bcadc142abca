"""Attention layers, the backbones that hold them, and weights for these."""
from . import attention, backbones
from .attention import *  # noqa: F403
from .backbones import *  # noqa: F403
from .convert import ConversionError, attention_blocks, convert_state_dict

__all__ = ['ConversionError', 'attention_blocks', 'convert_state_dict', *attention.__all__,
           *backbones.__all__]
