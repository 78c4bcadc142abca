"""One config with shuffle attention: built, trained for a step, and asked for predictions."""
import os
import random

import mmdet.datasets  # noqa: F401 (registers a data preprocessor, in onedl-mmdetection)
import numpy as np
import torch
from mmcv.cnn import ConvAWS2d
from mmdet.models.backbones.resnet import Bottleneck
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, TrackDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from torch import nn

from ..models import ShuffleAttention
from .changes import UNCHANGED, adapt, change_backbone
from .families import ZOO, find_backbone
from .inputs import prediction_batch, training_batch


class AttemptError(Exception):
    """A detector runs, but not as it should."""


def attempt(path: str, route: str, side: int) -> list[str]:
    """Build a detector of the zoo, compute loss and gradients, and predict; on the CPU.

    Args:
        path: of the config, relative to the zoo.
        route: one of ``changes``.
        side: of the images, in pixels.

    Returns:
        Remarks on what is not as the config has it.

    Raises:
        AttemptError: a bottleneck has no attention, its gradient is zero or not finite, the loss is
            not finite, or there are no predictions.
        Exception: whatever MMDetection raises.
    """
    os.chdir(ZOO.parent)  # configs name their teacher's relative to MMDetection's root
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    config = Config.fromfile(ZOO / path)
    init_default_scope(config.get('default_scope', 'mmdet'))
    remarks = adapt(config.model) + change_backbone(find_backbone(config.model), route)
    model = MODELS.build(config.model)
    _initialise(model)
    if route != UNCHANGED:
        _check_blocks(model)
    _train(model, config, side)
    _predict(model, config, side)
    return remarks


def _initialise(model: nn.Module) -> None:
    """Weights without files, in which a signal and all gradients of attention survive."""
    for module in model.modules():
        init = getattr(module, 'init_cfg', None)
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
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


def _check_blocks(model: nn.Module) -> None:
    detector = getattr(model, 'student', getattr(model, 'detector', model))
    blocks = [module for module in detector.backbone.modules() if isinstance(module, Bottleneck)]
    without = [block for block in blocks
               if not any(isinstance(child, ShuffleAttention) for child in block.children())]
    if without:
        raise AttemptError(f'{len(without)} of {len(blocks)} bottlenecks have no attention')


def _train(model: nn.Module, config: Config, side: int) -> None:
    model.train()
    # As a runner does: BoxInst and TOOD read it.
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))
    data = model.data_preprocessor(training_batch(config, side), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    if not loss.isfinite():
        raise AttemptError(f'the loss is {loss.item()}')
    loss.backward()
    for name, module in model.named_modules():
        if isinstance(module, ShuffleAttention):
            _check_gradients(name, module)


def _check_gradients(layer: str, attention: ShuffleAttention) -> None:
    for name, parameter in attention.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None or not parameter.grad.any():
            raise AttemptError(f'{layer}.{name} gets no gradient')
        if not parameter.grad.isfinite().all():
            raise AttemptError(f'the gradient of {layer}.{name} is not finite')


def _predict(model: nn.Module, config: Config, side: int) -> None:
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(prediction_batch(config, side), False)
        results = model(**data, mode='predict')
    for result in results:
        samples = result.video_data_samples if isinstance(result, TrackDataSample) else [result]
        for sample in samples:
            _check_sample(sample)


def _check_sample(sample: DetDataSample) -> None:
    if not any(name.startswith('pred_') for name, _ in sample.items()):
        raise AttemptError('there are no predictions')
