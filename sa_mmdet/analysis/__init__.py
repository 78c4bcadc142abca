"""The paper's tables, and what of them can be computed without training."""
from .complexity import Complexity, classifier_complexity, detector_complexity
from .complexity_table import compute_table
from .paper import Row, load_table

__all__ = [
    'Complexity', 'Row', 'classifier_complexity', 'compute_table', 'detector_complexity',
    'load_table'
]
