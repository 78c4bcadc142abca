from .read import CheckpointError, read_checkpoint
from .safe_globals import allow_mmengine_checkpoints

__all__ = [
    'CheckpointError', 'allow_mmengine_checkpoints', 'read_checkpoint'
]
