"""A trained detector, ready to be inspected."""
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
    """A detector from ``load_detector`` with its config and its name in pictures."""

    name: str
    model: nn.Module
    config: Config


def load_detector(config: Config, checkpoint: Path, device: str) -> nn.Module:
    """Build a detector and load all of its trained weights.

    Args:
        config: config of the detector and its test data set; not changed.
        checkpoint: MMEngine checkpoint or state dict. Weights of a plain ResNet are converted if
            the backbone has attention.
        device: device such as 'cpu' or 'cuda:0'.

    Returns:
        The detector in evaluation mode, with the names of its classes in ``dataset_meta``.

    Raises:
        CheckpointError: The file cannot be used, or is from another model.
    """
    content = read_checkpoint(checkpoint)
    init_default_scope(config.get('default_scope') or 'mmdet')
    model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(config.model)))
    state = {key.removeprefix('module.'): value for key, value in content['state_dict'].items()}
    if problem := mismatch(model, state):
        raise CheckpointError(f"{checkpoint} doesn't fit the config's {type(model).__name__}: "
                              f'{problem}. Use the config that it was trained with')
    for module in model.modules():
        if getattr(module, 'with_cp', False):  # checkpointing hides gradients at layers
            module.with_cp = False
    # from the checkpoint, otherwise from the test data set
    model.dataset_meta = dataset_meta(config.test_dataloader.dataset) | {
        key.lower(): value
        for key, value in content.get('meta', {}).get('dataset_meta', {}).items()}
    return model.to(device).eval()


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return a layer by its name in ``named_modules``.

    Raises:
        ConfigError: There is no such layer; the message lists similar names.
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
    raise ConfigError(f'layer {name}: {type(model).__name__} has no layer of this name. Did you '
                      f'mean one of {", ".join(near[:16])}?')


def find_class(model: nn.Module, name: str) -> int:
    """Return the label of a class by its name.

    Raises:
        ConfigError: There is no such class; the message lists similar names.
    """
    classes = list(model.dataset_meta['classes'])
    if name in classes:
        return classes.index(name)
    near = difflib.get_close_matches(name, classes, n=3) or classes[:12]
    raise ConfigError(f"class {name} is not one of the model's {len(classes)}: did you mean "
                      f'{", ".join(near)}?')


def find_device(name: str | None) -> str:
    """Return the device to compute on (default: the first GPU, or the CPU if there is none).

    Raises:
        ConfigError: PyTorch does not have the device.
    """
    if name is None:
        return 'cuda:0' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f'device {name} cannot be used: {reason(error)}. Use cpu, or a device '
                          'that PyTorch has here') from error
    return name
