"""Read, override and build the configs that a command line names, and check its output paths."""
import copy
import difflib
import sys
import tempfile
import traceback
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import Registry, init_default_scope
from torch import nn

from ...environment import mmpretrain_problem

SUFFIXES = ('.py', '.yml', '.yaml', '.json')
NO_CHECKS = '--no-checks'  # an option of tools/train.py and tools/test.py


class ConfigError(ValueError):
    """A config cannot be used; the message says why, and what to do."""


class Doubt(str):
    """Something that may be intended: it becomes a warning, and the command continues."""


def without_doubts(problems: Iterable[str]) -> list[str]:
    """Print each doubt once, and return the other problems, each once.

    If a check itself fails, that becomes a doubt too.
    """
    told = {}
    try:
        for problem in problems:
            told[problem] = None
    except Exception as error:  # unforeseen content of a config or a file
        told[Doubt(f'a check failed and was skipped: {reason(error)}')] = None
    for problem in told:
        if isinstance(problem, Doubt):
            print(f'warning: {problem}', file=sys.stderr)
    return [problem for problem in told if not isinstance(problem, Doubt)]


def class_of(kind: str | type | None, registry: Registry) -> type | None:
    """Return the class that a ``type`` names, or is in a pure Python config; None if unknown."""
    return registry.get(kind) if isinstance(kind, str) else kind


def detector_of(model: ConfigDict) -> ConfigDict:
    """Return the part of a model's config that has the backbone.

    It is the model itself, or the detector inside it, as in SoftTeacher and trackers.
    """
    if 'backbone' not in model and isinstance(model.get('detector'), dict):
        return detector_of(model.detector)
    return model


class Overrides(DictAction):
    """``--cfg-options key=value ...``: MMEngine's, with an error for a missing value."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            key, equals, _ = value.partition('=')
            if not (key and equals):
                raise ArgumentError(self, f'expected key=value, got {value!r}')
        super().__call__(parser, namespace, values, option_string)


def read_config(path: str | Path, overrides: dict | None = None) -> Config:
    """Read a config file, and override its settings.

    MMEngine accepts new keys silently. A new key that resembles one of the config's own prints a
    warning.

    Args:
        path: a .py, .yml, .yaml or .json file.
        overrides: values by dotted keys, as ``--cfg-options`` gives them.

    Raises:
        ConfigError: the file does not exist, is not a config, or cannot be read because of an
            error in it or in a config that it inherits; or an override does not fit.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        found = 'is a folder' if path.is_dir() else 'does not exist'
        raise ConfigError(f'config {path} {found}: give the path of a config file')
    if path.suffix not in SUFFIXES:
        raise ConfigError(f'config {path}: expected a {", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]} '
                          'file. Did you swap config and checkpoint?')
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is a program and may raise anything
        missing = mmpretrain_problem() if 'mmpretrain' in str(error) else None
        if missing:
            raise ConfigError(f'config {path}: {missing}') from error
        raise ConfigError(f'config {path} cannot be read: {reason(error)}. Fix it, or a '
                          'config that it inherits from') from error
    for warning in _near_misses(config, overrides or {}):
        print(f'warning: --cfg-options {warning}', file=sys.stderr)
    try:
        config.merge_from_dict(overrides or {})
    except (TypeError, KeyError, ValueError) as error:
        keys = ', '.join(f'{key}={value}' for key, value in overrides.items())
        raise ConfigError(f'--cfg-options {keys} does not fit config {path}: '
                          f'{reason(error)}') from error
    return config


def _near_misses(config: Config, overrides: dict) -> Iterator[str]:
    """Yield a warning for each new key that resembles one of the config's own."""
    for key in overrides:
        node = config
        for name in key.split('.'):
            if not isinstance(node, (dict, Config)):
                break
            if name not in node:
                for near in difflib.get_close_matches(name, map(str, node), n=1, cutoff=0.8):
                    yield f'{key} is new to the config: did you mean {near} instead of {name}?'
                break
            node = node[name]


def is_classifier(config: Config) -> bool:
    """Return whether a config is MMPretrain's, as those in ``configs/imagenet`` are."""
    return config.get('default_scope') == 'mmpretrain'


def build_model(config: Config, scope: str = 'mmdet') -> nn.Module:
    """Build the model of a config, to check that it can be built.

    Types are looked up in ``scope``, unless the config sets its own ``default_scope``.

    Returns:
        The model on PyTorch's meta device, without memory for its weights; on the CPU if it cannot
        be built there.

    Raises:
        ConfigError: the config has no model, or the model cannot be built.
    """
    model = config.get('model')
    if not isinstance(model, dict) or 'type' not in model:
        found = f'model={model!r}' if 'model' in config else ', '.join(config) or 'nothing'
        kind = 'classifier' if is_classifier(config) else 'detector'
        raise ConfigError(f'config {config.filename} has no model with a type, found {found}: give '
                          f'the config of a {kind}')
    if is_classifier(config) and (problem := mmpretrain_problem()):
        raise ConfigError(f'config {config.filename}: {problem}')
    init_default_scope(config.get('default_scope') or scope)
    for device in ('meta', 'cpu'):
        try:
            with torch.device(device):
                return MODELS.build(copy.deepcopy(model))  # a detector modifies its config
        except Exception as error:  # a config's classes may raise anything
            if device == 'cpu':
                hint = '' if scope == 'mmdet' or config.get('default_scope') else (
                    ". Set default_scope='mmdet' if its types are MMDetection's")
                raise ConfigError(f'config {config.filename}: its {model["type"]} cannot be built: '
                                  f'{reason(error)}{hint}') from error


def check_detector(config: Config) -> None:
    """Raise ConfigError unless a config has a detector that can be built."""
    if is_classifier(config):
        raise ConfigError(f'config {config.filename} is for a classifier: give the config of a '
                          'detector')
    build_model(config)


def datasets_below(node) -> Iterator[ConfigDict]:
    """Yield the data set configs in a data loader's config, wrappers before their contents."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from datasets_below(item)
    elif isinstance(node, dict):
        yield node
        for key in ('dataset', 'datasets'):
            yield from datasets_below(node.get(key))


def dicts_below(node) -> Iterator[dict]:
    """Yield all dicts in a part of a config, such as the steps of a pipeline and its branches."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from dicts_below(item)


def loader_problem(config: Config, split: str) -> str | None:
    """Return a message if a config has no data loader for a split, or None."""
    loader = config.get(f'{split}_dataloader')
    if isinstance(loader, dict):
        return None
    kind = 'classifier' if is_classifier(config) else 'detector'
    return (f'config {config.filename} has no {split}_dataloader, found {loader!r}: give the '
            f'config of a {kind} with its data')


def check_epochs(config: Config) -> None:
    """Raise ConfigError unless a config trains for at least one epoch."""
    epochs = (config.get('train_cfg') or {}).get('max_epochs')
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(f'train_cfg.max_epochs must be an integer of at least 1, got {epochs!r}')


def differing_keys(a, b, name: str = '') -> Iterator[str]:
    """Yield the dotted names of the values that differ between two nested dicts."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            yield from differing_keys(a.get(key), b.get(key), f'{name}.{key}' if name else str(key))
    elif a != b:
        yield name


def listed(names: Iterable, most: int = 3) -> str:
    """Return the first names as text, and how many more there are."""
    names = [str(name) for name in names]
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def folder_problem(path: Path) -> str | None:
    """Return why a folder, which may not exist yet, cannot be written to, or None."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        return f'{existing} is not a folder'
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f'{existing} cannot be written to: {error.strerror}'


def file_problem(path: Path) -> str | None:
    """Return why a file cannot be written into an existing folder, or None."""
    folder = path.absolute().parent
    if path.is_dir():
        return f'{path} is a folder: give a file name'
    if not folder.exists():
        return f'the folder {folder} does not exist: make it, or give another file'
    problem = folder_problem(folder)
    return problem and f'{problem}: give another file'


def new_file_problem(path: Path) -> str | None:
    """Return why a new file cannot be created, or None."""
    return f'{path} exists: remove it, or choose another name' if path.exists() else (
        file_problem(path))


def reason(error: BaseException) -> str:
    """Return the first line of an error, or the code that raised it if it has no message."""
    lines = str(error).strip().splitlines()
    if lines:
        line = lines[0].rstrip(': ')
        return line if len(line) > 3 else f'{type(error).__name__}: {line}'
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    return f'{type(error).__name__} in {Path(frames[-1].filename).name}: {frames[-1].line}'
