"""A trained detector, ready to be looked into."""
import copy
import difflib
from dataclasses import dataclass
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

from ...checkpoint.read import CheckpointError, read_checkpoint
from ..validate.config import ConfigError, reason
from ..validate.dataset import dataset_meta
from ..validate.weights import mismatch


@dataclass(frozen=True)
class Detector:
    """A detector of ``load_detector`` with its config, and its name in pictures."""

    name: str
    model: nn.Module
    config: Config


def load_detector(config: Config, checkpoint: Path, device: str) -> nn.Module:
    """Build a detector and load its trained weights, all of them.

    Args:
        config: of the detector and its test data set; not changed.
        checkpoint: of MMEngine, or a state dict. That of a plain ResNet is converted where a
            backbone with attention loads it.
        device: such as 'cpu' or 'cuda:0'.

    Returns:
        The detector in evaluation mode, with the names of its classes in ``dataset_meta``.

    Raises:
        CheckpointError: the file cannot be used, or is of another model.
    """
    content = read_checkpoint(checkpoint)
    init_default_scope(config.get('default_scope') or 'mmdet')
    model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(config.model)))
    state = {key.removeprefix('module.'): value for key, value in content['state_dict'].items()}
    if problem := mismatch(model, state):
        raise CheckpointError(f"{checkpoint} is of another model than the config's "
                              f'{type(model).__name__}: {problem}. Give the config that it was '
                              'trained with')
    for module in model.modules():
        if getattr(module, 'with_cp', False):  # checkpointing hides gradients at layers
            module.with_cp = False
    # as the checkpoint says, and otherwise the test data set
    model.dataset_meta = dataset_meta(config.test_dataloader.dataset) | {
        key.lower(): value
        for key, value in content.get('meta', {}).get('dataset_meta', {}).items()}
    return model.to(device).eval()


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return a layer by its name in ``named_modules``.

    Raises:
        ConfigError: there is none; the message lists those near it.
    """
    layers = dict(model.named_modules())
    layers.pop('')
    if name in layers:
        return layers[name]
    near = difflib.get_close_matches(name, layers, n=6, cutoff=0.5)
    parent = name
    while parent and parent not in layers:
        parent = parent.rpartition('.')[0]
    within = layers[parent] if parent else model
    inside = [f'{parent}.{child}' if parent else child for child, _ in within.named_children()]
    near = sorted(dict.fromkeys([*near, *inside]))
    raise ConfigError(f'layer {name}: the {type(model).__name__} has none of this name; near it '
                      f'are {", ".join(near[:16])}')


def find_class(model: nn.Module, name: str) -> int:
    """Return the label of a class by its name.

    Raises:
        ConfigError: the model does not have it; the message lists those near it.
    """
    classes = list(model.dataset_meta['classes'])
    if name in classes:
        return classes.index(name)
    near = difflib.get_close_matches(name, classes, n=3) or classes[:12]
    of = f', of {len(classes)}: ' if len(near) < len(classes) else ': '
    raise ConfigError(f'class {name}: the model does not have it{of}did you mean '
                      f'{", ".join(near)}?')


def find_device(name: str | None) -> str:
    """Return the device to compute on: the first GPU, or the CPU where there is none, unless named.

    Raises:
        ConfigError: PyTorch does not have the device.
    """
    if name is None:
        return 'cuda:0' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f'device {name} cannot be used: {reason(error)}. Use cpu, or another '
                          'that PyTorch has here') from error
    return name
