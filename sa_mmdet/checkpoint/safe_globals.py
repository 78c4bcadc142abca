"""Let ``torch.load(weights_only=True)``, torch 2.6's default, read MMEngine's checkpoints.

MMEngine itself cannot: https://github.com/open-mmlab/mmengine/issues/1655.
"""
from collections.abc import Callable
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from packaging.version import Version

try:
    from numpy._core.multiarray import _reconstruct, scalar
except ImportError:  # numpy < 2
    from numpy.core.multiarray import _reconstruct, scalar  # type: ignore[no-redef]

# The dtypes of the log history, and of what users add to it or to MMEngine's message hub: numbers,
# bools and text. None of these can run code, as an object could.
DTYPES = '?SU' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']


def _history_statistic(owner: type, name: str) -> Callable:
    """Return one of HistoryBuffer's statistics, all that a checkpoint may ask of ``getattr``."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError(f'refused: getattr({owner!r}, {name!r}) in a checkpoint')
    return getattr(HistoryBuffer, name)


def mmengine_safe_globals() -> list[Callable | tuple[Callable, str]]:
    """Return the globals, besides tensors, that a checkpoint of MMEngine's Runner holds.

    A HistoryBuffer is pickled with its methods, each as a call of ``getattr``. A function that
    returns only these methods replaces ``getattr``.

    Returns:
        Pairs of the object and its name in the file. onedl-mmengine wraps torch.load in a context
        manager that removes bare objects when it ends, but not pairs.
    """
    types = [HistoryBuffer, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in DTYPES}]
    named = [(t, f'{t.__module__}.{t.__qualname__}') for t in types]
    # numpy 2 moved numpy.core to numpy._core; a file carries the name of the numpy that wrote it.
    reconstructors = [(function, f'numpy.{core}.multiarray.{function.__name__}')
                      for function in (_reconstruct, scalar) for core in ('core', '_core')]
    statistic = (_history_statistic, 'builtins.getattr')
    return [*named, *reconstructors, statistic]


def allow_mmengine_checkpoints() -> None:
    """Allow ``mmengine_safe_globals`` in this process. torch < 2.6 does not ask."""
    if Version(torch.__version__) >= Version('2.6'):
        torch.serialization.add_safe_globals(mmengine_safe_globals())
