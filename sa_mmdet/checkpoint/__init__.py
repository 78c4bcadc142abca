from .convert import (
    TORCHVISION_MISSING,
    ConversionError,
    attention_blocks,
    convert_on_load,
    convert_state_dict,
)
from .read import CheckpointError, read_checkpoint
from .safe_globals import allow_mmengine_checkpoints

__all__ = [
    'TORCHVISION_MISSING', 'CheckpointError', 'ConversionError', 'allow_mmengine_checkpoints',
    'attention_blocks', 'convert_on_load', 'convert_state_dict', 'read_checkpoint'
]
