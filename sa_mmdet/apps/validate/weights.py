"""Check that a file of weights can be loaded, and that it fits a model."""
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ...checkpoint.read import CheckpointError, load_weights, read_checkpoint, refuse_code
from ...environment import torchvision_problem
from .config import build_model, listed, reason

# Names of initial weights in MMDetection's configs.
WEIGHT_KEYS = ('checkpoint', 'pretrained', 'teacher_ckpt')


def loading_problem(source: str | None) -> str | None:
    """Return why a checkpoint on this machine cannot be loaded, or None.

    Args:
        source: a path or a URL, as in configs and command lines. URLs, 'auto' and None are not
            checked.
    """
    if not source or source == 'auto' or '://' in source:
        return None
    try:
        load_weights(Path(source).expanduser().absolute())
    except CheckpointError as error:
        return f'checkpoint {error}'
    return None


def initial_weights(node) -> Iterator[str]:
    """Yield the files or URLs that the parts of a model are initialised from."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from initial_weights(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in WEIGHT_KEYS and isinstance(value, str):
                yield value
            else:
                yield from initial_weights(value)


def mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Load a state dict into a model; return what does not fit, or None.

    A backbone with attention converts a plain ResNet's weights, as in any load. Nothing is loaded
    if a weight has another shape or type. A model on the meta device keeps the given tensors.
    """
    own = model.state_dict()
    shared = [key for key in state if key in own and not key.endswith('num_batches_tracked')]
    kinds = [f'{key} {_described(state[key])} instead of {_described(own[key])}' for key in shared
             if state[key].shape != own[key].shape
             or state[key].is_floating_point() != own[key].is_floating_point()]
    missing, unexpected = [], [key for key in state if key not in own]
    if not kinds:
        is_meta = any(parameter.is_meta for parameter in model.parameters())
        try:
            missing, unexpected = model.load_state_dict(state, strict=False, assign=is_meta)
        except ValueError as error:  # the weights are for another attention layer
            return str(error)
    missing = [key for key in missing if not key.endswith('num_batches_tracked')]
    found = ((kinds, 'of another shape or type'), (missing, 'missing'),
             (unexpected, 'not in the model'))
    return '; '.join(f'{len(keys)} {what} ({listed(keys)})' for keys, what in found if keys) or None


def initial_weights_problem(config: Config) -> str | None:
    """Return what is wrong with the initial weights of a config's backbone, or None."""
    inits = config.model.backbone.get('init_cfg') or []
    init = next((init for init in (inits if isinstance(inits, (list, tuple)) else [inits])
                 if init.get('checkpoint')), None)
    if init is None:
        return None
    source = init['checkpoint']
    if source.startswith('torchvision://') and (problem := torchvision_problem()):
        return problem
    init_default_scope(config.get('default_scope') or 'mmdet')
    backbone = MODELS.build(dict(copy.deepcopy(config.model.backbone), init_cfg=None))
    try:
        state = _read(source, init.get('prefix') or '')
        # a classifier's own layers are ignored
        problem = mismatch(backbone, {key: value for key, value in state.items()
                                      if key in backbone.state_dict() or key.startswith('layer')})
    except Exception as error:  # file system, network, unpickler, conversion
        return f'{source} cannot be loaded: {reason(error)}'
    return problem and f'{source} does not fit {config.model.backbone.type}: {problem}'


def _read(source: str, prefix: str) -> dict[str, Tensor]:
    """Return the weights in a file or at a URL, without a prefix, as MMEngine reads them."""
    prefix = f'{prefix.removesuffix(".")}.' if prefix else ''
    if '://' in source:
        refuse_code()
        checkpoint = CheckpointLoader.load_checkpoint(source, map_location='cpu')
    else:
        checkpoint = read_checkpoint(Path(source).expanduser())
    state = {key.removeprefix('module.'): value
             for key, value in checkpoint.get('state_dict', checkpoint).items()}
    return {key.removeprefix(prefix): value for key, value in state.items()
            if key.startswith(prefix)}


def checkpoint_problem(path: Path, config: Config) -> str | None:
    """Return why a model's own checkpoint does not fit a config, or None."""
    try:
        state = read_checkpoint(path)['state_dict']
    except CheckpointError as error:
        return str(error)
    model = build_model(config)
    for module in model.modules():  # otherwise a plain ResNet's weights would fit
        module.convert_weights = False
    problem = mismatch(model, state)
    return problem and (f'{path} does not fit {config.model.type} with '
                        f'{config.model.backbone.type}: {problem}. Give the checkpoint of this row')


def _described(value: Tensor) -> str:
    return f'{value.dtype} {tuple(value.shape)}'
