"""What a command line names: config files, read, overridden and built; and places to write."""
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
NO_CHECKS = '--no-checks'  # of tools/train.py and test.py


class ConfigError(ValueError):
    """A config cannot be used; the message says why, and what can be done."""


class Doubt(str):
    """Something that may be intended: the user is told, and nothing is refused."""


def without_doubts(problems: Iterable[str]) -> list[str]:
    """Print what may be intended, each once, and return the other problems, each once.

    A check that fails itself stops nobody: that is printed too.
    """
    told = {}
    try:
        for problem in problems:
            told[problem] = None
    except Exception as error:  # what a config or a file holds that nobody thought of
        told[Doubt(f'a check could not be made, and is left out: {reason(error)}')] = None
    for problem in told:
        if isinstance(problem, Doubt):
            print(f'warning: {problem}', file=sys.stderr)
    return [problem for problem in told if not isinstance(problem, Doubt)]


def class_of(kind: str | type | None, registry: Registry) -> type | None:
    """Return the class that ``type`` names in a config, or is in a pure Python one; None if none.
    """
    return registry.get(kind) if isinstance(kind, str) else kind


def detector_of(model: ConfigDict) -> ConfigDict:
    """Return the part of a model's config that has the backbone.

    It is the model itself, or the detector inside it, as in SoftTeacher and in trackers.
    """
    if 'backbone' not in model and isinstance(model.get('detector'), dict):
        return detector_of(model.detector)
    return model


class Overrides(DictAction):
    """``--cfg-options key=value ...``: MMEngine's, with a message where one lacks."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            key, equals, _ = value.partition('=')
            if not (key and equals):
                raise ArgumentError(self, f'give key=value, got {value!r}')
        super().__call__(parser, namespace, values, option_string)


def read_config(path: str | Path, overrides: dict | None = None) -> Config:
    """Read a config file, and override settings.

    Where a key is new to the config and almost one of its own, a warning is printed: MMEngine
    takes new keys as they are.

    Args:
        path: of a .py, .yml or .json file.
        overrides: values by dotted keys, as ``--cfg-options`` gives them.

    Raises:
        ConfigError: there is no such file, it is none of a config or cannot be read, whatever goes
            wrong in it or the configs below it, or an override does not fit.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        found = 'is a folder' if path.is_dir() else 'does not exist'
        raise ConfigError(f'config {path} {found}: give the path of a config file')
    if path.suffix not in SUFFIXES:
        raise ConfigError(f'config {path} is no file of {", ".join(SUFFIXES)}: is it the '
                          "checkpoint, in the config's place?")
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is a program: whatever that raises
        missing = mmpretrain_problem() if 'mmpretrain' in str(error) else None
        if missing:
            raise ConfigError(f'config {path}: {missing}') from error
        raise ConfigError(f'config {path} cannot be read: {reason(error)}. Mend it, or what it is '
                          'based on') from error
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
    """Yield a sentence for each key that the config has almost."""
    for key in overrides:
        node = config
        for name in key.split('.'):
            if not isinstance(node, (dict, Config)):
                break
            if name not in node:
                for near in difflib.get_close_matches(name, map(str, node), n=1, cutoff=0.8):
                    yield f'{key} is new to the config: did you mean {near} in place of {name}?'
                break
            node = node[name]


def is_classifier(config: Config) -> bool:
    """Return whether a config is one of MMPretrain's, as those in ``configs/imagenet`` are."""
    return config.get('default_scope') == 'mmpretrain'


def build_model(config: Config, scope: str = 'mmdet') -> nn.Module:
    """Build the model of a config, to see whether that can be done.

    The types are those of ``scope``, unless the config sets its own ``default_scope``.

    Returns:
        The model without memory for its weights, on PyTorch's meta device; what cannot be built
        there is on the CPU.

    Raises:
        ConfigError: the config has no model, or it cannot be built.
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
                return MODELS.build(copy.deepcopy(model))  # a detector writes into its config
        except Exception as error:  # whatever a config's classes raise
            if device == 'cpu':
                hint = '' if scope == 'mmdet' or config.get('default_scope') else (
                    " (MMDetection's configs set default_scope='mmdet', this one sets none)")
                raise ConfigError(f'config {config.filename}: its {model["type"]} cannot be built: '
                                  f'{reason(error)}{hint}') from error


def check_detector(config: Config) -> None:
    """Raise ConfigError unless a config has a detector that can be built."""
    if is_classifier(config):
        raise ConfigError(f'config {config.filename} is of a classifier: give that of a detector')
    build_model(config)


def datasets_below(node) -> Iterator[ConfigDict]:
    """Yield the configs of the data sets of a data loader's, wrappers before what is in them."""
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
    """Return what is wrong if a config has no data loader for a split."""
    loader = config.get(f'{split}_dataloader')
    if isinstance(loader, dict):
        return None
    kind = 'classifier' if is_classifier(config) else 'detector'
    return (f'config {config.filename} has no {split}_dataloader, found {loader!r}: give the '
            f'config of a {kind} with its data')


def check_epochs(config: Config) -> None:
    """Raise ConfigError unless a config trains for whole epochs, one at least."""
    epochs = (config.get('train_cfg') or {}).get('max_epochs')
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(f'train_cfg.max_epochs must be an integer of at least 1, got {epochs!r}')


def differing_keys(a, b, name: str = '') -> Iterator[str]:
    """Yield the dotted names of the values that are not the same in two nested dicts."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            yield from differing_keys(a.get(key), b.get(key), f'{name}.{key}' if name else str(key))
    elif a != b:
        yield name


def listed(names: Iterable, most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    names = [str(name) for name in names]
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def folder_problem(path: Path) -> str | None:
    """Return why nothing can be written into a folder, which may not exist yet; None if it can."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        return f'{existing} is not a folder'
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f'{existing} cannot be written to: {error.strerror}'


def file_problem(path: Path) -> str | None:
    """Return why a file cannot be written into a folder that exists; None if it can."""
    folder = path.absolute().parent
    if path.is_dir():
        return f'{path} is a folder: give the name of a file'
    if not folder.exists():
        return f'the folder {folder} does not exist: make it, or give another file'
    problem = folder_problem(folder)
    return problem and f'{problem}: give another file'


def new_file_problem(path: Path) -> str | None:
    """Return why a file cannot be made, which must not exist yet; None if it can."""
    return f'{path} exists: remove it, or choose another name' if path.exists() else (
        file_problem(path))


def reason(error: BaseException) -> str:
    """Return the first line of an error, or the code that raised it where it says nothing."""
    lines = str(error).strip().splitlines()
    if lines:
        line = lines[0].rstrip(': ')
        return line if len(line) > 3 else f'{type(error).__name__}: {line}'
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    return f'{type(error).__name__} in {Path(frames[-1].filename).name}: {frames[-1].line}'
