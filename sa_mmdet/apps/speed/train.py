"""The training step of a whole detector, with SA-ResNet and with plain ResNet."""
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from ...models import in_channels_last
from .measure import compare
from .variants import BASELINE, NetworkCase, initialise, share_weights, variants_of

OBJECTS = 7  # per image, as in COCO
AMP_OPTIONS = ('loss_scale', 'dtype', 'use_fsdp')  # only AmpOptimWrapper has them


@dataclass(frozen=True, kw_only=True)
class TrainCase(NetworkCase):
    """What to measure: the training step of a detector.

    Attributes:
        config: config of a detector whose backbone is an ``AttentionResNet``.
    """

    config: Config


def check_config(config: Config) -> None:
    """Raise ValueError unless the config has what ``measure_training`` needs."""
    for key in ('model', 'optim_wrapper'):
        if not isinstance(config.get(key), dict):
            raise ValueError(f'it has no {key}: give the config of a detector')
    backbone = config.model.get('backbone')
    variants_of(backbone if isinstance(backbone, dict) else {})


def build_detectors(case: TrainCase) -> dict[str, nn.Module]:
    """Return the config's detector with every variant's backbone, the baseline first.

    The detectors are in training mode with random weights. All compute the same function.

    Raises:
        ValueError: A detector cannot be built, or the weights cannot be shared.
    """
    init_default_scope('mmdet')
    detectors = {}
    for name, backbone in variants_of(case.config.model.backbone, case.formula).items():
        model = copy.deepcopy(case.config.model)
        model.backbone, model.init_cfg = backbone, None
        try:
            detectors[name] = MODELS.build(model)
        except Exception as error:  # whatever a config's classes raise
            raise ValueError(f'the detector with {name} cannot be built: {error}') from error
    baseline = detectors[BASELINE]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        baseline.init_weights()
    initialise(baseline.backbone)
    share_weights(detectors)
    for detector in detectors.values():
        detector.to(case.device).train()
        if case.channels_last:
            in_channels_last(detector.backbone)
    return detectors


def build_optimizer(detector: nn.Module, case: TrainCase) -> OptimWrapper:
    """Return a detector's optimizer, with MMEngine's mixed precision if the case has it.

    The learning rate is 0: an update takes the same time, and all variants keep the same weights.
    On the CPU, mixed precision doesn't scale the loss.

    Raises:
        ValueError: The optimizer cannot be built.
    """
    cfg = copy.deepcopy(case.config.optim_wrapper)
    for key in AMP_OPTIONS:
        cfg.pop(key, None)
    cfg.type = 'OptimWrapper'
    if case.mixed and case.device.type == 'cuda':
        cfg.update(type='AmpOptimWrapper', loss_scale='dynamic', dtype=case.dtype)
    try:
        wrapper = build_optim_wrapper(detector, cfg)
    except Exception as error:  # whatever a config's classes raise
        raise ValueError(f'the optimizer cannot be built: {error}') from error
    for group in wrapper.optimizer.param_groups:
        group['lr'] = 0.
    return wrapper


def measure_training(case: TrainCase) -> Iterator[dict]:
    """Measure the training step of all variants in turn.

    A step is what MMEngine's runner does with a batch: preprocessing, loss, backward pass and
    update. Images, boxes and masks are random, but the same in every step. So are the random
    numbers that the detector samples with.

    Yields:
        The rows of ``measure.compare``, each with its 'pass'.

    Raises:
        ValueError: As in ``build_detectors``.
    """
    batch = random_batch(case)
    steps = {name: training_step(detector, build_optimizer(detector, case), batch, case)
             for name, detector in build_detectors(case).items()}
    for row in compare(steps, case.device, case.repeats):
        yield {'pass': 'training step', **row}


def random_batch(case: TrainCase) -> dict:
    """Return images, boxes and masks as from a data loader, always the same."""
    batch = demo_mm_inputs(case.batch, [(3, case.height, case.width)] * case.batch,
                           num_items=[OBJECTS] * case.batch, with_mask=True)
    for sample in batch['data_samples']:
        sample.gt_instances.labels.zero_()  # the one class that every detector has
    return batch


def training_step(detector: nn.Module, optimizer: OptimWrapper, batch: dict, case: TrainCase):
    """Return a call that takes one step and returns the losses."""
    def call():
        torch.manual_seed(0)
        with optimizer.optim_context(detector), case.autocast():
            data = detector.data_preprocessor(batch, True)
            loss, losses = detector.parse_losses(detector(**data, mode='loss'))
        optimizer.update_params(loss)
        return losses
    return call
