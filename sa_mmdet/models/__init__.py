"""Attention layers, backbones and necks with attention, and the conversion of weights."""
from . import attention, backbones, loading, necks
from .attention import *  # noqa: F403
from .backbones import *  # noqa: F403
from .convert import ConversionError, attention_blocks, convert_state_dict
from .deploy import for_deployment
from .necks import *  # noqa: F403

__all__ = ['ConversionError', 'attention_blocks', 'convert_state_dict', 'for_deployment',
           *attention.__all__, *backbones.__all__, *necks.__all__]

loading.convert_weights_on_load()
