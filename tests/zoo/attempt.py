"""One config with shuffle attention: built, trained for a step, and asked for predictions."""
import math
import random
import re

import mmdet.datasets  # noqa: F401 (registers a data preprocessor, in onedl-mmdetection)
import numpy as np
import torch
from mmcv.cnn import ConvAWS2d
from mmdet.models.backbones.resnet import Bottleneck
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.registry import MODELS
from mmdet.structures import TrackDataSample
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from torch import nn

from sa_mmdet.apps.validate.config import detector_of, dicts_below
from sa_mmdet.models import FeatureAttention, ShuffleAttention
from zoo.families import BACKBONE, NECK, PLUGIN, ZOO
from zoo.inputs import make_batch

# Boxes before and after non-maximum suppression, those that a head is trained with, and layers with
# gradient checkpoints (by fairscale).
LIMITS = dict(nms_pre=200, max_per_img=100, num=64, num_cp=0)
# The top of the pyramid is smaller than what works on it.
TOO_SMALL = re.compile(
    "smaller than kernel|selected index k out of range|Kernel size can't be greater")


def attempt(path: str, route: str | None, side: int = 64) -> list[str]:
    """Build a detector of the zoo, compute loss and gradients, and predict; on the CPU.

    Without a route it has no attention. Images have ``side`` pixels, or 384 where that is little.

    Returns:
        Remarks on what is not as the config has it.

    Raises:
        AssertionError: a bottleneck has no attention, its gradient is zero or not finite, the loss
            is not finite, or there are no predictions.
        Exception: whatever MMDetection raises.
    """
    try:
        return _attempt(path, route, side)
    except Exception as error:
        if not TOO_SMALL.search(str(error)):
            raise
    return [*_attempt(path, route, 384), '384 px images']


def _attempt(path: str, route: str | None, side: int) -> list[str]:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    config = Config.fromfile(ZOO / path)
    init_default_scope(config.get('default_scope', 'mmdet'))
    remarks = _adapt(config.model)
    detector = detector_of(config.model)
    if route == NECK:
        _add_to_necks(detector, side)
    else:
        remarks += _add_attention(detector.backbone, route)
    model = MODELS.build(config.model)
    _initialise(model)
    if route:
        _check_places(model, route)
    _train(model, make_batch(config, side, training=True))
    _predict(model, make_batch(config, side, training=False))
    return remarks


def _adapt(model: ConfigDict) -> list[str]:
    """Let a model work alone, on a CPU and with small images."""
    remarks = []
    for node in dicts_below(model):
        for key in ('teacher_ckpt', 'batch_augments'):
            node.pop(key, None)
        node.update({key: min(node[key], most) for key, most in LIMITS.items()
                     if isinstance(node.get(key), int)})
        if node.get('type') in ('SyncBN', 'MMSyncBN'):
            node['type'] = 'BN'
            remarks = ['SyncBN as BN']
    return remarks


def _add_attention(backbone: ConfigDict, route: str | None) -> list[str]:
    if route == BACKBONE:
        backbone.type = 'SAResNet'
    if route != PLUGIN:
        return []
    widths = [block.conv3.out_channels for block in MODELS.build(backbone).modules()
              if isinstance(block, Bottleneck)]
    assert widths, 'a plugin at after_conv3 needs bottlenecks'
    # The largest power of two, up to the paper's 64, twice of which divides all widths.
    groups = next(groups for groups in (64, 32, 16, 8, 4, 2, 1)
                  if math.gcd(*widths) % (2 * groups) == 0)
    plugin = dict(cfg=dict(type='ShuffleAttention', groups=groups), position='after_conv3')
    backbone.plugins = [*(backbone.get('plugins') or []), plugin]
    return [f'groups={groups}'] if groups != 64 else []


def _add_to_necks(detector: ConfigDict, side: int) -> None:
    """Put FeatureAttention behind the neck, or behind the backbone if the neck gives no maps."""
    necks = detector.get('neck') or []
    necks = necks if isinstance(necks, list) else [necks]
    with torch.no_grad():
        backbone = MODELS.build(detector.backbone)(torch.zeros(1, 3, side, side))
        neck = MODELS.build(necks)(backbone)
    maps = neck if _wide(neck) else backbone
    channels = [x.shape[1] for x in maps]
    attention = dict(
        type='FeatureAttention', attention=dict(type='ShuffleAttention', groups='auto'),
        in_channels=channels if len(set(channels)) > 1 else channels[0], levels=_wide(maps))
    detector.neck = [*necks, attention] if maps is neck else [attention, *necks]


def _wide(maps) -> list[int]:
    """Return the numbers of the maps of more than one position."""
    return [level for level, x in enumerate(maps) if x.shape[2:].numel() > 1]


def _initialise(model: nn.Module) -> None:
    """Give weights without files, in which a signal and all gradients of attention survive."""
    for module in model.modules():
        init = getattr(module, 'init_cfg', None)
        if isinstance(init, dict) and 'checkpoint' in init:
            module.init_cfg = None
        if isinstance(getattr(module, 'pretrained', None), str):
            module.pretrained = None
    model.init_weights()
    for module in model.modules():
        if isinstance(module, Bottleneck):
            # Neither the identity, which gives what is inside no gradient, nor ever larger sums.
            nn.init.constant_(module.norm3.weight, 0.2)
        if isinstance(module, TridentConv):
            # Without pretrained weights MMDetection leaves it as the memory was.
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, ConvAWS2d):
            # As from a plain ResNet: its scale becomes the weight's own, which is one initially.
            module.load_state_dict(dict(weight=module.weight), strict=False)
        if isinstance(module, ShuffleAttention):
            # Initially the scale of the normalised values is zero, and with it gn's gradient.
            for parameter in module.parameters():
                nn.init.normal_(parameter, 0.5, 0.1)


def _check_places(model: nn.Module, route: str) -> None:
    detector = getattr(model, 'student', getattr(model, 'detector', model))
    if route == NECK:
        assert any(isinstance(neck, FeatureAttention) for neck in detector.neck)
        return
    for name, block in detector.backbone.named_modules():
        assert not isinstance(block, Bottleneck) or any(
            isinstance(child, ShuffleAttention) for child in block.children()), (
                f'{name} has no attention')


def _train(model: nn.Module, batch: dict) -> None:
    model.train()
    # As a runner does: BoxInst and TOOD read it.
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))
    loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
    assert loss.isfinite(), f'the loss is {loss.item()}'
    loss.backward()
    learns = {}
    for layer, module in model.named_modules():
        if isinstance(module, ShuffleAttention):
            # of FeatureAttention one layer for all: the loss may leave out maps of a small image
            place = re.sub(r'\.layers\.\d+$', '', layer)
            for name, parameter in module.named_parameters():
                gradient = parameter.grad
                assert gradient is None or gradient.isfinite().all(), f'{layer}.{name}: {gradient}'
                if parameter.requires_grad:
                    learns[f'{place}.{name}'] = learns.get(f'{place}.{name}', False) or (
                        gradient is not None and bool(gradient.any()))
    assert all(learns.values()), f'{min(learns, key=learns.get)} gets no gradient'


@torch.no_grad()
def _predict(model: nn.Module, batch: dict) -> None:
    model.eval()
    for result in model(**model.data_preprocessor(batch, False), mode='predict'):
        frames = result.video_data_samples if isinstance(result, TrackDataSample) else [result]
        for frame in frames:
            assert any(name.startswith('pred_') for name, _ in frame.items()), 'no predictions'
