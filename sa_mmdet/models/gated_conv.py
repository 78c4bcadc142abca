"""Shuffle attention as a part of the convolution before it."""
import torch
from torch import Tensor, nn

from ..ops.absorbed import gate
from ..ops.reference import ChannelParameters
from .attention import ShuffleAttention


def absorb(weight: Tensor, bias: Tensor, attention: ShuffleAttention
           ) -> tuple[Tensor, Tensor, ChannelParameters]:
    """Return a 1x1 convolution whose channels stand in the order that the attention leaves.

    Args:
        weight, bias: of the convolution before the attention, (C, in_channels, 1, 1) and (C,).
        attention: with F_c a scale and shift (``fc='affine'``).

    Returns:
        Weight and bias with their rows in that order, and the attention's parameters for each
        channel: what ``gate`` makes of the convolution is what the attention made of it.
    """
    p = attention.cweight.numel()
    slope, constant = attention.sweight.flatten(), attention.sbias.flatten()
    if attention.gn is not None:
        constant = torch.addcmul(constant, slope, attention.gn.bias)
        slope = slope * attention.gn.weight
    zero = torch.zeros_like(slope)
    halves = ((zero, slope), (attention.cweight.flatten(), zero),
              (attention.cbias.flatten(), constant))
    by_channel = [torch.stack(pair).expand(attention.groups, 2, p).flatten() for pair in halves]
    weight, bias, slope, of_mean, constant = (
        _shuffled(tensor) if attention.shuffle else tensor
        for tensor in (weight, bias, *by_channel))
    return weight, bias, (slope, of_mean, constant)


def _shuffled(x: Tensor) -> Tensor:
    """Return the rows of ``x`` in the order of channels after a channel shuffle with 2 groups."""
    return x.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


class GatedConv2d(nn.Conv2d):
    """A 1x1 convolution with shuffle attention after it, in the order that the shuffle leaves.

    y = z sigmoid(s z + t) of the convolution's result z, with s and t for each plane. Beside
    ``weight`` and ``bias`` it has ``slope``, ``of_mean`` and ``constant``, each (C,):
    s = slope / sqrt(variance + eps), t = of_mean * mean + constant - s * mean.

    Args:
        in_channels, out_channels: of the convolution.
        eps: added to the variance; None for attention without group norm, where s = slope and
            t = of_mean * mean + constant.
    """

    def __init__(self, in_channels: int, out_channels: int, eps: float | None):
        super().__init__(in_channels, out_channels, 1)
        self.eps = eps
        self.slope = nn.Parameter(torch.zeros(out_channels))
        self.of_mean = nn.Parameter(torch.zeros(out_channels))
        self.constant = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """Return y, and with an identity of its shape that added and a ReLU.

        Args:
            x: (N, in_channels, H, W).
            identity: (N, out_channels, H, W), or None.

        Returns:
            (N, out_channels, H, W).
        """
        return gate(super().forward(x), identity, self.channel_parameters, self.eps)

    @property
    def channel_parameters(self) -> ChannelParameters:
        """The parameters of ``gate``."""
        return self.slope, self.of_mean, self.constant

    @classmethod
    @torch.no_grad()
    def absorbing(cls, conv: nn.Conv2d, attention: ShuffleAttention) -> 'GatedConv2d':
        """Return a 1x1 convolution and the attention that follows it as one."""
        assert conv.bias is not None, 'that of the batch norm which was folded'
        gated = cls(conv.in_channels, conv.out_channels,
                    attention.eps if attention.gn is not None else None)
        gated.to(conv.weight).train(conv.training)
        weight, bias, parameters = absorb(conv.weight, conv.bias, attention)
        for to, value in zip((gated.weight, gated.bias, *gated.channel_parameters),
                             (weight, bias, *parameters), strict=True):
            to.copy_(value)
        return gated
