"""Shuffle attention as part of the convolution before it."""
import torch
from torch import Tensor, nn

from ..ops.absorbed import gate
from ..ops.reference import ChannelParameters
from .attention import ShuffleAttention


def absorb(weight: Tensor, bias: Tensor, center: Tensor | None, attention: ShuffleAttention
           ) -> tuple[Tensor, Tensor, ChannelParameters]:
    """Return a 1x1 convolution with its channels in the order that the attention leaves.

    Args:
        weight, bias: (C, in_channels, 1, 1) and (C,), of the convolution before the attention.
        center: (C,), roughly the mean of each channel. The bias leaves it to ``gate``. None for 0.
        attention: a layer whose F_c is a scale and shift (``fc='affine'``).

    Returns:
        Weight and bias with their rows in that order, and the attention's parameters for each
        channel. ``gate`` then makes of the new convolution what the attention makes of the old.
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
    """A 1x1 convolution and shuffle attention, in the channel order that the shuffle leaves.

    It applies ``gate`` to the convolution's output. Besides ``weight`` and ``bias``, it has the
    parameters of ``gate``: ``slope``, ``of_mean``, ``constant`` and ``center``, each (C,).

    Args:
        in_channels, out_channels: channels of the convolution.
        eps: as for ``gate``.
    """

    def __init__(self, in_channels: int, out_channels: int, eps: float | None):
        super().__init__(in_channels, out_channels, 1)
        self.eps = eps
        self.slope = nn.Parameter(torch.zeros(out_channels))
        self.of_mean = nn.Parameter(torch.zeros(out_channels))
        self.constant = nn.Parameter(torch.zeros(out_channels))
        self.center = nn.Parameter(torch.zeros(out_channels))
        if eps is None:  # keeps it from loading a normalised layer's weights
            self.register_buffer('unnormalised', torch.tensor(True))

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """Return the gated convolution. With an identity, add it and apply a ReLU.

        Args:
            x: (N, in_channels, H, W).
            identity: (N, out_channels, H, W), or None.

        Returns:
            (N, out_channels, H, W).
        """
        return gate(super().forward(x), identity, self.channel_parameters, self.eps)

    @property
    def channel_parameters(self) -> ChannelParameters:
        """The parameters that ``gate`` takes."""
        return self.slope, self.of_mean, self.constant, self.center

    @classmethod
    @torch.no_grad()
    def absorbing(cls, conv: nn.Conv2d, center: Tensor | None, attention: ShuffleAttention
                  ) -> 'GatedConv2d':
        """Merge a 1x1 convolution with bias and the attention that follows it.

        ``center`` and ``attention`` are as for ``absorb``.
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
