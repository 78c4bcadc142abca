"""Train and test the rows of the paper's tables, one resumable run after another."""
from .runs import Run, Settings, plan_runs

__all__ = ['Run', 'Settings', 'plan_runs']
