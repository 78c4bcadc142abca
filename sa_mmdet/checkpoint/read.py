"""Read checkpoint files, only whole ones, and without running code in them."""
import os
import pickle
import re
import zipfile
from pathlib import Path
from traceback import walk_tb

import torch
from torch import Tensor

# PyTorch's own switches. The first makes every torch.load of a process refuse code, whatever its
# caller asked for. The second, set by the user, lets torch.load run code unless its caller passes
# weights_only.
REFUSE_CODE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
TRUST_CODE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'

# What torch.load names when it refuses: a global, a class, or what safe_globals.py withholds.
BEYOND_WEIGHTS = re.compile(r"GLOBAL (\S+)|refused: (\S+)|<class '([^']+)'>")
NO_CHECKPOINT = 'is not a PyTorch checkpoint, or is damaged: give another file, or copy it again'


class CheckpointError(ValueError):
    """Raised if a checkpoint cannot be used. The message says why and what to do."""


def refuse_code() -> None:
    """Make every ``torch.load`` of this process and its children refuse a file that holds code.

    onedl-mmengine falls back to loading everything if ``weights_only`` fails. This stops that.
    If the user has set ``TRUST_CODE`` in the environment, nothing changes.
    """
    if not trusted():
        os.environ[REFUSE_CODE] = '1'


def trusted() -> bool:
    """Return whether the user has set ``TRUST_CODE``, which lets checkpoints run code."""
    return os.environ.get(TRUST_CODE, '0').lower() in ('1', 'y', 'yes', 'true')


def load_weights(path: Path) -> object:
    """Load a file of ``torch.save`` to the CPU without running any code that it holds.

    Raises:
        CheckpointError: the file is missing or damaged. Or it needs more than weights and
            MMEngine's log history to load, and the user has not set ``TRUST_CODE``.
    """
    if not path.is_file():
        found = 'is a folder' if path.is_dir() else 'does not exist'
        raise CheckpointError(f'{path} {found}: give the path of a checkpoint')
    try:
        return torch.load(path, map_location='cpu', weights_only=not trusted())
    except pickle.UnpicklingError as error:
        raise CheckpointError(refusal(error, path)) from error
    except Exception as error:  # torch.load raises RuntimeError, EOFError, ...
        cause = re.sub(r'\[enforce .*?\]', '', str(error)).strip('. ') or repr(error)
        cause = cause.splitlines()[0].split('. ')[0]
        told = '' if cause.isdigit() else f' ({cause})'
        raise CheckpointError(f'{path} {NO_CHECKPOINT}{told}') from error


def refusal(error: pickle.UnpicklingError, path: Path | str) -> str:
    """Return why ``torch.load`` refused a file, for people to read."""
    cause = str(error).partition('WeightsUnpickler error:')[2].strip() or str(error)
    if not cause or cause.startswith('Unsupported operand'):
        return f'{path} {NO_CHECKPOINT}'
    beyond = BEYOND_WEIGHTS.search(cause)
    what = next(filter(None, beyond.groups())) if beyond else cause.splitlines()[0].rstrip('. ')
    return (f'{path} holds more than weights ({what}), which could run any program on this '
            'machine. It was not loaded. If you trust its author, set '
            f'{TRUST_CODE}=1 in the environment and run the command again')


def file_refused(error: pickle.UnpicklingError) -> str:
    """Return which file or URL MMEngine was loading when an error was raised."""
    names = [frame.f_locals.get('filename') for frame, _ in walk_tb(error.__traceback__)]
    return next(filter(None, names), 'a checkpoint')


def read_checkpoint(path: Path) -> dict:
    """Load a checkpoint to the CPU without running any code that it holds.

    Returns:
        The checkpoint, with the weights under 'state_dict'.

    Raises:
        CheckpointError: as for ``load_weights``, or the file holds no weights.
    """
    checkpoint = load_weights(path)
    if not isinstance(checkpoint, dict):
        checkpoint = {}
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict) or not state or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise CheckpointError(f'{path} is not a checkpoint: it holds no state dict of tensors. '
                              'Give another file')
    return checkpoint if 'state_dict' in checkpoint else dict(state_dict=state)


def is_whole(path: Path) -> bool:
    """Return whether a file written by ``torch.save`` is complete and undamaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def last_whole(folder: Path, template: str = 'epoch_{}.pth') -> tuple[int, Path] | None:
    """Return the number and path of the last whole checkpoint in a folder, or None.

    Args:
        folder: the folder, which may be missing.
        template: the template of the file names, as for MMEngine's CheckpointHook.
    """
    before, *after = re.split(r'{.*?}', template, maxsplit=1)
    if not after:  # one name for all checkpoints
        return None
    name = re.compile(rf'{re.escape(before)}(\d+){re.escape(after[0])}')
    numbers = {int(match[1]): path for path in folder.glob('*')
               if (match := name.fullmatch(path.name))}
    return next(((number, numbers[number]) for number in sorted(numbers, reverse=True)
                 if is_whole(numbers[number])), None)
