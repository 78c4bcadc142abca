"""Config files for the tools: read, overridden and tried, or refused with the reason."""
import copy
import difflib
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import init_default_scope

from ...environment import mmpretrain_problem

SUFFIXES = ('.py', '.yml', '.yaml', '.json')


class ConfigError(ValueError):
    """A config cannot be used; the message says why, and what can be done."""


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
    """A sentence for each key that the config has almost."""
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
    """Whether a config is one of MMPretrain's, as those in ``configs/imagenet`` are."""
    return config.get('default_scope') == 'mmpretrain'


def check_model(config: Config, scope: str = 'mmdet') -> None:
    """Raise ConfigError unless a config has a model that can be built.

    The types are those of ``scope``, unless the config sets its own ``default_scope``. The model is
    built without memory for its weights, on PyTorch's meta device; only what fails there is
    built on the CPU, to be sure.
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
                MODELS.build(copy.deepcopy(model))  # a detector writes into its config
            return
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
    check_model(config)


def datasets_below(node) -> Iterator[ConfigDict]:
    """The configs of the data sets of a data loader's, wrappers before what is in them."""
    if isinstance(node, list):
        for item in node:
            yield from datasets_below(item)
    elif isinstance(node, dict):
        yield node
        for key in ('dataset', 'datasets'):
            yield from datasets_below(node.get(key))


def check_epochs(config: Config) -> None:
    """Raise ConfigError unless a config trains for whole epochs, one at least."""
    epochs = (config.get('train_cfg') or {}).get('max_epochs')
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(f'train_cfg.max_epochs must be an integer of at least 1, got {epochs!r}')


def reason(error: BaseException) -> str:
    """The first line of an error, or the code that raised it where it says nothing."""
    lines = str(error).strip().splitlines()
    if lines:
        line = lines[0].rstrip(': ')
        return line if len(line) > 3 else f'{type(error).__name__}: {line}'
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    return f'{type(error).__name__} in {Path(frames[-1].filename).name}: {frames[-1].line}'
