"""Shuffle attention as a part of the convolution before it."""
import torch
from torch import Tensor, nn

from ..ops.absorbed import gate
from ..ops.reference import ChannelParameters
from .attention import ShuffleAttention


def absorb(weight: Tensor, bias: Tensor, center: Tensor | None, attention: ShuffleAttention
           ) -> tuple[Tensor, Tensor, ChannelParameters]:
    """Return a 1x1 convolution whose channels stand in the order that the attention leaves.

    Args:
        weight, bias: of the convolution before the attention, (C, in_channels, 1, 1) and (C,).
        center: (C,), about the mean of each channel, which the bias leaves to ``gate``; None for 0.
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
    if center is None:
        center = torch.zeros_like(bias)
    weight, bias, slope, of_mean, constant, center = (
        _shuffled(tensor) if attention.shuffle else tensor
        for tensor in (weight, bias - center, *by_channel, center))
    return weight, bias, (slope, of_mean, constant, center)


def _shuffled(x: Tensor) -> Tensor:
    """Return the rows of ``x`` in the order of channels after a channel shuffle with 2 groups."""
    return x.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


class GatedConv2d(nn.Conv2d):
    """A 1x1 convolution with shuffle attention after it, in the order that the shuffle leaves.

    It is ``gate`` of the convolution's result. Beside ``weight`` and ``bias`` it has the parameters
    of that, ``slope``, ``of_mean``, ``constant`` and ``center``, each (C,).

    Args:
        in_channels, out_channels: of the convolution.
        eps: as of ``gate``.
    """

    def __init__(self, in_channels: int, out_channels: int, eps: float | None):
        super().__init__(in_channels, out_channels, 1)
        self.eps = eps
        self.slope = nn.Parameter(torch.zeros(out_channels))
        self.of_mean = nn.Parameter(torch.zeros(out_channels))
        self.constant = nn.Parameter(torch.zeros(out_channels))
        self.center = nn.Parameter(torch.zeros(out_channels))
        if eps is None:  # so that weights of the one are not taken for those of the other
            self.register_buffer('unnormalised', torch.tensor(True))

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
        return self.slope, self.of_mean, self.constant, self.center

    @classmethod
    @torch.no_grad()
    def absorbing(cls, conv: nn.Conv2d, center: Tensor | None, attention: ShuffleAttention
                  ) -> 'GatedConv2d':
        """Return a 1x1 convolution with bias and the attention that follows it as one.

        The arguments are those of ``absorb``.
        """
        assert conv.bias is not None
        gated = cls(conv.in_channels, conv.out_channels,
                    attention.eps if attention.gn is not None else None)
        gated.to(conv.weight).train(conv.training)
        weight, bias, parameters = absorb(conv.weight, conv.bias, center, attention)
        for to, value in zip((gated.weight, gated.bias, *gated.channel_parameters),
                             (weight, bias, *parameters), strict=True):
            to.copy_(value)
        return gated
