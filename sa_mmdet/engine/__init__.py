"""What takes part in MMEngine's training loop."""
from .epoch_seed import EpochSeedHook

__all__ = ['EpochSeedHook']
