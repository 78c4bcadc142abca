"""What takes part in MMEngine's training and test loops."""
from .atomic_checkpoint import AtomicCheckpointHook
from .epoch_seed import EpochSeedHook
from .initial_validation import InitialValidationHook
from .top_predictions import DumpTopPredictions

__all__ = ['AtomicCheckpointHook', 'DumpTopPredictions', 'EpochSeedHook', 'InitialValidationHook']
