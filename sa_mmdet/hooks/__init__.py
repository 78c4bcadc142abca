"""Hooks for MMEngine's training loop, and a metric that writes predictions to a file."""
from .atomic_checkpoint import AtomicCheckpointHook
from .epoch_seed import EpochSeedHook
from .initial_validation import InitialValidationHook
from .top_predictions import DumpTopPredictions

__all__ = ['AtomicCheckpointHook', 'DumpTopPredictions', 'EpochSeedHook', 'InitialValidationHook']
