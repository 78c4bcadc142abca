"""SA-ResNet and plain ResNet: inference, and a training step without the rest of a detector."""
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.registry import MODELS
from torch import Tensor, nn

from .measure import compare
from .variants import BASELINE, FOLDED, NetworkCase, initialise, share_weights, variants_of


@dataclass(frozen=True, kw_only=True)
class BackboneCase(NetworkCase):
    """What to measure: backbones of one depth, with the options that detectors give them.

    Attributes:
        depth: 50, 101 or 152.
    """

    depth: int = 50


def build_backbones(case: BackboneCase) -> dict[str, nn.Module]:
    """Return the variants, the baseline first. All compute the same function."""
    config = dict(type='SAResNet', depth=case.depth, frozen_stages=1, norm_eval=True)
    networks = {name: MODELS.build(cfg)
                for name, cfg in variants_of(config, case.formula).items()}
    initialise(networks[BASELINE])
    share_weights(networks)
    return {name: network.to(device=case.device, memory_format=case.layout)
            for name, network in networks.items()}


def measure_backbone(case: BackboneCase) -> Iterator[dict]:
    """Measure inference, then training, of all variants in turn.

    'inference' is the forward pass in evaluation mode under ``no_grad``. It also includes the
    networks whose batch norms mmcv has folded into their convolutions. 'training' is the forward
    and backward pass in training mode, with the stem and the first stage frozen and norms in
    evaluation mode. It starts from fixed gradients of the outputs and computes new gradients of
    all trainable parameters.

    Yields:
        The rows of ``measure.compare``, each with its 'pass'.
    """
    networks = build_backbones(case)
    generator = torch.Generator().manual_seed(0)
    x = _random((case.batch, 3, case.height, case.width), generator, case)
    for network in networks.values():
        network.eval()
    folded = {name: fuse_conv_bn(copy.deepcopy(networks[unfolded]))
              for unfolded, name in FOLDED.items()}
    forwards = {name: _inference(network, x, case)
                for name, network in (networks | folded).items()}
    for row in compare(forwards, case.device, case.repeats, capture=True):
        yield {'pass': 'inference', **row}

    gradients = [1e-2 * _random(y.shape, generator, case).to(y.dtype)
                 for y in forwards[BASELINE]()]
    for network in networks.values():
        network.train()
    steps = {name: _training(network, x, gradients, case) for name, network in networks.items()}
    for row in compare(steps, case.device, case.repeats, capture=True):
        yield {'pass': 'training', **row}


def _random(shape: tuple[int, ...], generator: torch.Generator, case: BackboneCase) -> Tensor:
    return torch.randn(shape, generator=generator).to(case.device, memory_format=case.layout)


def _inference(network: nn.Module, x: Tensor, case: BackboneCase):
    def call():
        with torch.no_grad(), case.autocast():
            return network(x)
    return call


def _training(network: nn.Module, x: Tensor, gradients: list[Tensor], case: BackboneCase):
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def call():
        with case.autocast():
            outputs = network(x)
        first = sum(not y.requires_grad for y in outputs)  # outputs of frozen stages
        return torch.autograd.grad(outputs[first:], parameters, gradients[first:])
    return call
