import torch
import torch.fx
from torch import Tensor, nn

from ...ops.dispatch import is_traced, route
from ...ops.functional import compute
from ...ops.reference import (
    AblatedParameters,
    Parameters,
    shuffle_attention_gates,
    shuffle_attention_reference,
)
from .base import (
    AttentionLayer,
    check_bool,
    check_number,
    find_groups,
    register_attention,
    sigmoid,
)

FC_CHOICES = ('affine', 'conv', 'none')

torch.fx.wrap('shuffle_attention_reference')  # one node: sizes decide what it does


@register_attention
class ShuffleAttention(AttentionLayer):
    """Shuffle attention (SA-Net, Zhang & Yang, arXiv 2102.00240, section 3).

    The channels are split into ``groups`` groups, each group into two halves. The first half is
    gated per channel by its global average, the second per position by its normalised values. A
    channel shuffle then mixes the halves. With p = C / (2 * groups), all groups share 6 p
    parameters, named and shaped as in the published checkpoints: ``cweight``, ``sweight`` (zeros),
    ``cbias``, ``sbias`` (ones), each (1, p, 1, 1), ``gn.weight`` (ones) and ``gn.bias`` (zeros),
    each (p,).

    Args:
        in_channels: channels C of the input, divisible by 2 * groups.
        groups: number of groups; 64 in the paper. 'auto' takes the largest up to 64 that fits.
        eps: added to the variance in the group norm.
        gn: False leaves the spatial branch without group norm (Table 1, "w/o gn").
        shuffle: False leaves out the channel shuffle (Table 1, "w/o shuffle"). The state dict then
            has a buffer ``unshuffled``, so that a layer that shuffles does not load its weights.
        fc: the function F_c before each sigmoid: 'affine', a scale and shift per channel; 'none',
            the identity (Table 1, "w/o Fc"); 'conv', a 1x1 convolution p -> p with bias
            (Table 1, "1x1 Conv"), in ``channel_conv`` and ``spatial_conv``.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any floating dtype.

    Raises:
        TypeError: ``in_channels`` or ``groups`` is not an integer, ``eps`` not a number, ``gn`` or
            ``shuffle`` not a bool.
        ValueError: ``in_channels`` or ``groups`` is below 1, C is not divisible by 2 * groups,
            ``eps`` is negative or not finite, or ``fc`` is not one of the three.
    """

    _abbr_ = 'sa'

    def __init__(self,
                 in_channels: int,
                 groups: int | str = 64,
                 eps: float = 1e-5,
                 gn: bool = True,
                 shuffle: bool = True,
                 fc: str = 'affine'):
        super().__init__(in_channels)
        groups = find_groups(in_channels, groups, parts=2)
        check_number('eps', eps, minimum=0)
        check_bool('gn', gn)
        check_bool('shuffle', shuffle)
        if fc not in FC_CHOICES:
            raise ValueError(f'fc must be one of {FC_CHOICES}, got {fc!r}')
        self.groups = groups
        self.eps = eps
        self.shuffle = shuffle
        self.fc = fc

        p = in_channels // (2 * groups)
        if fc == 'affine':
            self.cweight = nn.Parameter(torch.zeros(1, p, 1, 1))
            self.cbias = nn.Parameter(torch.ones(1, p, 1, 1))
            self.sweight = nn.Parameter(torch.zeros(1, p, 1, 1))
            self.sbias = nn.Parameter(torch.ones(1, p, 1, 1))
        elif fc == 'conv':
            self.channel_conv = nn.Conv2d(p, p, 1)
            self.spatial_conv = nn.Conv2d(p, p, 1)
        self.gn = nn.GroupNorm(p, p, eps) if gn else None
        if not shuffle:
            self.register_buffer('unshuffled', torch.tensor(True))

    @property
    def operands(self) -> Parameters | None:
        """The parameters in the operator's order.

        None if a part is left out or replaced, as in the paper's Table 1.
        """
        gn = self.gn  # each attribute of a module costs a search
        if self.fc != 'affine' or gn is None or not self.shuffle:
            return None
        return self.cweight, self.cbias, self.sweight, self.sbias, gn.weight, gn.bias

    def attend(self, x: Tensor) -> Tensor:
        operands = self.operands
        if operands is None:
            return self._attend_ablated(x)
        if not is_traced(x):
            self._check(x)
        return compute(route(x), x, None, None, operands, self.groups, self.eps)

    def _check(self, x: Tensor) -> None:
        if 0 in x.shape[2:]:
            raise ValueError('ShuffleAttention needs maps with at least one pixel, got shape '
                             f'{tuple(x.shape)}')
        if x.device != self.cweight.device:
            raise ValueError(f'the input is on {x.device}, but the layer is on '
                             f'{self.cweight.device}. Move one of them with .to()')

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channel, spatial = shuffle_attention_gates(
            x, *self._ablated_operands(), self.groups, self.eps)
        n, _, h, w = x.shape
        return channel.reshape(n, -1), spatial.reshape(n, -1, h, w)

    def _attend_ablated(self, x: Tensor) -> Tensor:
        return shuffle_attention_reference(
            x, *self._ablated_operands(), self.groups, self.eps, self.shuffle)

    def _ablated_operands(self) -> AblatedParameters:
        """Return the parameters in the reference's order, with None for what is left out."""
        gn = (self.gn.weight, self.gn.bias) if self.gn is not None else (None, None)
        if self.fc == 'affine':
            return self.cweight, self.cbias, self.sweight, self.sbias, *gn
        if self.fc == 'conv':
            channel, spatial = self.channel_conv, self.spatial_conv
            return channel.weight, channel.bias, spatial.weight, spatial.bias, *gn
        return None, None, None, None, *gn

    def neutral_state(self) -> tuple[dict[str, Tensor], float]:
        if self.fc == 'none':
            raise ValueError("with fc='none' the gates of ShuffleAttention depend on the input, "
                             'whatever the parameters are')
        if self.fc == 'affine':
            state = self._state_with(cweight=0., cbias=1., sweight=0., sbias=1.)
        else:
            state = self._state_with(channel_conv__weight=0., channel_conv__bias=1.,
                                     spatial_conv__weight=0., spatial_conv__bias=1.)
        return state, sigmoid(1.)

    def unpermute(self, y: Tensor) -> Tensor:
        return torch.cat(y.unflatten(1, (-1, 2)).unbind(2), dim=1) if self.shuffle else y

    def operations(self, height: int, width: int) -> dict[str, int]:
        elements = self.in_channels * height * width
        counts = {'pool': elements // 2, 'gate': elements}
        if self.gn is not None:
            counts['group_norm'] = elements // 2
        if self.fc == 'conv':
            multiply_adds = self.in_channels // 2 * (self.channel_conv.in_channels + 1)
            counts['conv'] = multiply_adds * (1 + height * width)
        return counts

    def extra_repr(self) -> str:
        return (f'{self.in_channels}, groups={self.groups}, eps={self.eps}, '
                f'gn={self.gn is not None}, shuffle={self.shuffle}, fc={self.fc!r}')
