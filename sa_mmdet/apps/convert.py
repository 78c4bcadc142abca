"""Convert the checkpoints of plain networks, the authors' classifiers and MMPretrain's."""
import copy
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from ..checkpoint.files import atomic_file, sha256
from ..checkpoint.read import read_checkpoint
from ..models.attention import AttentionLayer
from ..models.backbones import AttentionResNet
from ..models.convert import ConversionError, attention_blocks, convert_state_dict
from ..models.deploy import for_deployment
from ..models.gated_conv import GatedConv2d
from ..models.necks import FeatureAttention, insert_feature_attention
from ..version import __version__
from .validate.config import class_of, detector_of, new_file_problem, reason
from .validate.labels import heads_of
from .validate.weights import mismatch

CLASSIFIER_PARTS = ('fc.', 'head.', 'neck.')
NOT_WEIGHTS = ('optimizer', 'param_schedulers', 'message_hub', 'ema_state_dict')


def convert_checkpoint(config: Config, source: Path, target: Path, verify: bool = False,
                       deploy: bool = False) -> None:
    """Convert the weights in ``source`` for the detector of ``config``, or for its backbone.

    If ``source`` is a detector's checkpoint, so is ``target``. If it is of a backbone or classifier
    (torchvision's, MMPretrain's, the authors'), ``target`` holds the backbone, for
    ``init_cfg=dict(type='Pretrained', checkpoint=target)``. Weights without attention are
    converted. Weights with attention, or for a network without it, are only renamed.

    Args:
        config: the config of a detector. Its attention may be in the backbone (built in or as a
            plugin), among the necks, or absent.
        source: the checkpoint. Only tensors and MMEngine's log history are loaded from it.
        target: the file to write; must not exist.
        verify: compare the features before and after, on random input in float64.
        deploy: write the weights of the network that ``for_deployment`` returns.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConversionError: it cannot be converted, ``target`` exists or cannot be written, or the
            verification fails. Nothing is written then.
    """
    if problem := new_file_problem(target):
        raise ConversionError(problem)
    checkpoint = read_checkpoint(source)
    init_default_scope('mmdet')
    inner = detector_of(config.model)
    detector = _build(inner)
    model = detector if inner is config.model else _build(config.model)
    network, state, kind = _network_state(checkpoint['state_dict'], model, detector)
    dropped = [key for key in NOT_WEIGHTS if key in checkpoint]
    if dropped:
        print(f'not copied, as a new training starts without them: {", ".join(dropped)}')

    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    plain = dict(state)
    converted = convert_state_dict(network, state)
    inserted = insert_feature_attention(network, state)
    if problem := mismatch(network, state):
        raise ConversionError(f'{source} does not fit the config: {problem}. Give a checkpoint '
                              'and a config of the same network'
                              f'{_other_classes(problem, config, meta)}')
    if converted:
        print(f'{converted} bottlenecks converted')
    if inserted:
        print('FeatureAttention inserted: it starts as the identity')
    if not converted and not inserted:
        has_attention = any(attention_blocks(network)) or any(
            isinstance(module, FeatureAttention) for module in network.modules())
        kept = ('the checkpoint already has attention' if has_attention else
                "the config's network has no attention")
        print(f'{kept}: the weights keep their values')
    if verify:
        if converted or inserted:
            _verify(inner, plain, state, network, whole=bool(inserted))
        elif not deploy:
            print('nothing to verify: no weights were converted')
    if deploy:
        state = _deploy(network, verify)

    written = dict(
        converted_from=str(source), sha256=sha256(source),
        bottlenecks_converted=converted, feature_attention_inserted=inserted, deployed=deploy,
        sa_mmdet_version=__version__)
    if kind != 'backbone' and 'dataset_meta' in meta:
        written['dataset_meta'] = meta['dataset_meta']
    _write(dict(meta=written, state_dict=state), target)
    print(f'wrote the {kind} to {target}')


def _build(cfg: ConfigDict) -> nn.Module:
    """Build a model without loading its initial weights."""
    cfg = copy.deepcopy(cfg)
    detector = detector_of(cfg)
    backbone = detector.backbone if 'backbone' in detector else cfg
    backbone.init_cfg = None
    backbone.pop('deploy', None)  # it describes the output, not the input
    return MODELS.build(cfg)


def _network_state(state: dict, model: nn.Module, detector: nn.Module
                   ) -> tuple[nn.Module, dict, str]:
    """Return the network that the weights belong to, the weights under its names, and its kind.

    The network is the config's model, the detector inside it (as in SoftTeacher) or the backbone.
    """
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    for network in (model, detector):
        names = network.state_dict().keys()
        if any(key in names for key in state if not key.startswith('backbone.')):
            return network, state, 'detector' if network is detector else type(model).__name__
    state = {key.removeprefix('backbone.'): value for key, value in state.items()
             if not key.startswith(CLASSIFIER_PARTS)}
    backbone = detector.backbone.state_dict()
    if not any(key in backbone for key in state):
        raise ConversionError(
            f'no weight name matches: the checkpoint has {next(iter(state), "none")}, the backbone '
            f'{next(iter(backbone))}. Give weights of the same network, without another prefix')
    return detector.backbone, state, 'backbone'


def _other_classes(problem: str, config: Config, meta: dict) -> str:
    """Return how to convert a detector with other classes than the config, or '' if not needed."""
    heads = heads_of(config.model)
    if 'of another shape' not in problem or not heads:
        return ''
    known = meta.get('dataset_meta')
    classes = known.get('classes') if isinstance(known, dict) else None
    number = len(classes) if classes else 'N'
    options = ' '.join(f'{option}={number}' for option in heads)
    return (f'. If the checkpoint has another number of classes, convert it with that number: '
            f'--cfg-options {options}. load_from skips weights of another shape')


def _plain_backbone(cfg: ConfigDict) -> ConfigDict:
    """Return a backbone's config without its attention."""
    cfg = copy.deepcopy(cfg)
    if issubclass(class_of(cfg.type, MODELS), AttentionResNet):
        cfg.type = 'mmdet.ResNet'
        for key in AttentionResNet.own_arguments:
            cfg.pop(key, None)
    if cfg.get('plugins'):
        cfg.plugins = [
            plugin for plugin in cfg.plugins
            if not issubclass(class_of(plugin['cfg']['type'], MODELS), AttentionLayer)] or None
    return cfg


def _plain_detector(cfg: ConfigDict, numbered: bool) -> ConfigDict:
    """Return a detector's config without attention in its backbone and necks.

    Args:
        cfg: the detector's config.
        numbered: keep the necks in a list, even if there is only one.
    """
    cfg = copy.deepcopy(cfg)
    cfg.backbone = _plain_backbone(cfg.backbone)
    necks = cfg.get('neck') or []
    necks = [neck for neck in (necks if isinstance(necks, list) else [necks])
             if not issubclass(class_of(neck.type, MODELS), FeatureAttention)]
    cfg.neck = necks if numbered or len(necks) > 1 else necks[0] if necks else None
    return cfg


@torch.no_grad()
def _deploy(network: nn.Module, verify: bool) -> dict:
    """Return the deployed state dict of a network that has its weights."""
    if not any(isinstance(module, AttentionResNet) for module in network.modules()):
        raise ConversionError('--deploy writes weights for deploy=True of SAResNet and '
                              'AttentionResNet, and the config has neither. Leave it out, and '
                              'use tools/export.py for other backbones')
    try:
        deployed = for_deployment(network)
    except ValueError as error:
        raise ConversionError(f'{error}. Leave out --deploy') from error
    absorbed = sum(isinstance(module, GatedConv2d) for module in deployed.modules())
    print(f'{absorbed} bottlenecks deployed: set model.backbone.deploy=True to load them')
    if verify:
        image = torch.randn(1, 3, 320, 320, dtype=torch.float64)
        _compare(*(_outputs(copy.deepcopy(part).double().eval(), image)
                   for part in (network, deployed)))
    return deployed.state_dict()


def _verify(cfg: ConfigDict, plain: dict, converted: dict, network: nn.Module,
            whole: bool) -> None:
    """Print the largest difference of every feature; raise if it exceeds rounding.

    Args:
        cfg: the detector's config.
        plain, converted: the weights before and after.
        network: what they belong to: the detector, a model that holds it, or its backbone.
        whole: compare the features after the necks, not the backbone's.
    """
    names = [name for name, _ in network.named_modules() if name.rpartition('.')[2] == 'backbone']
    prefix = names[0].removesuffix('backbone') if names else ''
    if whole:
        numbered = any(key.startswith(f'{prefix}neck.0.') for key in plain)
        cfgs, size = (_plain_detector(cfg, numbered), cfg), 320
    else:
        prefix += 'backbone.' if names else ''
        cfgs, size = (_plain_backbone(cfg.backbone), cfg.backbone), 96
    image = torch.randn(1, 3, size, size, dtype=torch.float64)
    try:
        features = [_features(part, state, prefix, image)
                    for part, state in zip(cfgs, (plain, converted), strict=True)]
    except RuntimeError as error:
        raise ConversionError(f'--verify needs a forward pass on the CPU, which fails: '
                              f'{reason(error)}. Leave out --verify') from error
    _compare(*features)


def _compare(before: tuple[torch.Tensor, ...], after: tuple[torch.Tensor, ...]) -> None:
    """Print the largest difference of every feature; raise if it exceeds rounding."""
    for index, (x, y) in enumerate(zip(before, after, strict=True)):
        difference = (y - x).abs().max().item()
        scale = x.abs().max().item()
        print(f'output {index}: largest difference {difference:.3g} of values up to {scale:.3g}')
        if not difference <= 1e-5 * scale:
            raise ConversionError(f'verification failed: output {index} differs')


@torch.no_grad()
def _features(cfg: ConfigDict, state: dict, prefix: str, image: torch.Tensor
              ) -> tuple[torch.Tensor, ...]:
    """Return the features of a network with the given weights, in float64."""
    network = _build(cfg).double()
    network.eval()
    network.load_state_dict({key.removeprefix(prefix): value for key, value in state.items()
                             if key.startswith(prefix)}, strict=False)
    return _outputs(network, image)


def _outputs(network: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the input of a detector's head, or the output of a backbone."""
    return network.extract_feat(image) if hasattr(network, 'extract_feat') else network(image)


def _write(checkpoint: dict, target: Path) -> None:
    """Write the whole file or nothing."""
    try:
        with atomic_file(target) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:
        raise ConversionError(f'{target} could not be written: {error}') from error
