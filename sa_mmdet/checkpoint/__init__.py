"""Read checkpoints without running code in them, and write files whole or not at all."""
from .files import write_atomically
from .read import (
    CheckpointError,
    is_whole,
    last_whole,
    load_weights,
    read_checkpoint,
    refuse_code,
    trusted,
)
from .safe_globals import allow_mmengine_checkpoints

__all__ = [
    'CheckpointError', 'allow_mmengine_checkpoints', 'is_whole', 'last_whole', 'load_weights',
    'read_checkpoint', 'refuse_code', 'trusted', 'write_atomically'
]
