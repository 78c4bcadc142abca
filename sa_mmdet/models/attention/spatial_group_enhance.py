import torch
import torch.fx
from torch import Tensor, nn

from ...ops.reference import computed
from .base import AttentionLayer, check_number, find_groups, register_attention, sigmoid

torch.fx.wrap('computed')
torch.fx.wrap('standardised')


@register_attention
class SpatialGroupEnhance(AttentionLayer):
    """Spatial group-wise enhancement (SGE-Net, Li et al., arXiv 1905.09646, equations 1 to 6).

    In each group of channels, every position is gated by its similarity to the group's global
    average. The similarity is standardised over the positions, then scaled and shifted per group.
    Float16 and bfloat16 input is standardised in float32.

    Args:
        in_channels: channels C of the input, divisible by ``groups``.
        groups: number of groups; 64 in the paper. 'auto' takes the largest up to 64 that fits.
        eps: added to the standard deviation.

    Shape:
        (N, C, H, W) -> (N, C, H, W).

    Raises:
        TypeError: ``in_channels`` or ``groups`` is not an integer, or ``eps`` not a number.
        ValueError: one of the integers is below 1, C is not divisible by ``groups``, or ``eps`` is
            negative or not finite.
    """

    _abbr_ = 'sge'

    def __init__(self, in_channels: int, groups: int | str = 64, eps: float = 1e-5):
        super().__init__(in_channels)
        check_number('eps', eps, minimum=0)
        self.groups = groups = find_groups(in_channels, groups)
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, groups, 1, 1))

    def gates(self, x: Tensor) -> tuple[None, Tensor]:
        z = computed(self._grouped(x))
        similarity = (z * z.mean((3, 4), keepdim=True)).sum(2)
        return None, torch.sigmoid(self.weight * standardised(similarity, self.eps) + self.bias)

    def attend(self, x: Tensor) -> Tensor:
        _, gate = self.gates(x)
        return (self._grouped(x) * gate.to(x.dtype).unsqueeze(2)).reshape(x.shape)

    def _grouped(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, self.groups, c // self.groups, h, w)

    def neutral_state(self) -> tuple[dict[str, Tensor], float]:
        return self._state_with(weight=0., bias=1.), sigmoid(1.)

    def operations(self, height: int, width: int) -> dict[str, int]:
        elements = self.in_channels * height * width
        similarities = self.groups * height * width
        return {
            'pool': elements,
            'similarity': elements,
            'group_norm': similarities,
            'gate': elements
        }

    def extra_repr(self) -> str:
        return f'{self.in_channels}, groups={self.groups}, eps={self.eps}'


def standardised(z: Tensor, eps: float) -> Tensor:
    """Return (z - mean) / (deviation + eps) over the positions of ``z``, (N, G, H, W).

    The deviation is unbiased, as in the authors' code. For a single position it is 0.
    """
    correction = int(z.shape[2] * z.shape[3] > 1)
    std, mean = torch.std_mean(z, (2, 3), correction=correction, keepdim=True)
    return (z - mean) / (std + eps)
