"""What takes part in MMEngine's training loop."""
from .atomic_checkpoint import AtomicCheckpointHook
from .epoch_seed import EpochSeedHook

__all__ = ['AtomicCheckpointHook', 'EpochSeedHook']
