"""The networks that are compared: with fused attention, with its formula, and plain ResNet."""
from dataclasses import dataclass

import torch
from mmdet.models.backbones.resnet import Bottleneck
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...models import AttentionResNet, ShuffleAttention
from ..validate.config import class_of
from .measure import Case

BASELINE = 'ResNet'
FORMULA = 'ResNet + formula'
ATTENTION = 'SAResNet'
FOLDED = {name: f'{name} + fuse_conv_bn' for name in (BASELINE, ATTENTION)}


@dataclass(frozen=True, kw_only=True)
class NetworkCase(Case):
    """How every variant runs.

    With a ``dtype`` of 16 bits, networks run under autocast with float32 weights. In a detector,
    only the backbone is ``channels_last``.

    Attributes:
        formula: also measure ``ResNet + formula``.
    """

    formula: bool = True

    @property
    def mixed(self) -> bool:
        """Whether networks run in mixed precision."""
        return self.dtype != torch.float32

    def autocast(self) -> torch.autocast:
        """Return the context to run a network in; it changes nothing in float32."""
        return torch.autocast(self.device.type, self.dtype if self.mixed else None,
                              enabled=self.mixed)


class ShuffleAttentionFormula(ShuffleAttention):
    """Shuffle attention in PyTorch's own operators, whatever implementations are available."""

    def attend(self, x: Tensor) -> Tensor:
        return self._attend_ablated(x)


def variants_of(backbone: dict, formula: bool = True) -> dict[str, dict]:
    """Return the configs of the backbones to compare, by name, the baseline first.

    Args:
        backbone: config of an ``AttentionResNet``, such as ``SAResNet``.
        formula: whether to include the formula of shuffle attention.

    Returns:
        'ResNet', MMDetection's, with every option except the attention; the given backbone, under
        the name of its type; and, if its attention is shuffle attention, 'ResNet + formula',
        MMDetection's with the formula as a plugin. None has channels_last, which the case sets.

    Raises:
        ValueError: The backbone is not an ``AttentionResNet``.
    """
    name = backbone.get('type')
    kind = class_of(name, MODELS)
    if not (isinstance(kind, type) and issubclass(kind, AttentionResNet)):
        raise ValueError(f'the backbone must be SAResNet or AttentionResNet, got {name}')
    backbone = {key: value for key, value in backbone.items() if key != 'channels_last'}
    plain = {key: value for key, value in backbone.items()
             if key not in AttentionResNet.own_arguments}
    plain.update(type='ResNet', init_cfg=None)
    competing = {BASELINE: plain,
                 kind.__name__: dict(backbone, init_cfg=None, convert_weights=True)}
    attention = backbone.get('attention') or {}
    attention = dict(type=attention) if isinstance(attention, str) else dict(attention)
    if formula and attention.get('type', 'ShuffleAttention') in (
            'ShuffleAttention', ShuffleAttention):
        plugin = dict(cfg=attention | dict(type=ShuffleAttentionFormula), position='after_conv3')
        competing[FORMULA] = dict(plain, plugins=[plugin, *(backbone.get('plugins') or [])])
    return competing


def initialise(backbone: nn.Module) -> None:
    """Give a plain ResNet random weights that keep the magnitude of features at any depth.

    Every call gives the same weights. Norms get the running statistics and, at the end of residual
    branches, the small scale that training leaves.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, _BatchNorm):
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.2)
        for module in backbone.modules():
            if isinstance(module, Bottleneck):
                module.norm3.weight.mul_(0.25)


def share_weights(networks: dict[str, nn.Module]) -> None:
    """Give every network the baseline's function, converted for the attention.

    Then all of them see the same values. What depends on the values, such as the number of
    proposals, doesn't affect the comparison.

    Args:
        networks: backbones or whole detectors built from ``variants_of``, by the same names.

    Raises:
        ValueError: ResNet's weights cannot be converted for this attention.
    """
    state = networks[BASELINE].state_dict()
    for name, network in networks.items():
        if name != BASELINE:
            network.load_state_dict(state)
            state = network.state_dict()  # AttentionResNet has converted it
