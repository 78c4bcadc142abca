from torch import Tensor, nn
from torch.nn import functional as F

from .base import AttentionLayer, check_bool, check_positive_int, register_attention


@register_attention
class SqueezeExcitation(AttentionLayer):
    """Squeeze-and-Excitation (SENet, Hu et al., arXiv 1709.01507, equations 2 to 4).

    Every channel is gated by sigmoid(fc2(relu(fc1(global average)))).

    Args:
        in_channels: channels C of the input.
        reduction: C / reduction hidden channels; 16 in the paper.
        bias: True gives the two linear layers biases. By its parameter counts, SA-Net's paper has
            them in RetinaNet (Table 3) and in classifiers (Table 2), not in Faster and Mask R-CNN.

    Shape:
        (N, C, H, W) -> (N, C, H, W).

    Raises:
        TypeError: ``in_channels`` or ``reduction`` is not an integer, or ``bias`` not a bool.
        ValueError: one of them is below 1, or ``reduction`` exceeds ``in_channels``.
    """

    _abbr_ = 'se'

    def __init__(self, in_channels: int, reduction: int = 16, bias: bool = False):
        super().__init__(in_channels)
        hidden = reduced_channels(in_channels, reduction)
        check_bool('bias', bias)
        self.fc1 = nn.Linear(in_channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, in_channels, bias=bias)

    def gates(self, x: Tensor) -> tuple[Tensor, None]:
        return self.fc2(F.relu(self.fc1(x.mean((2, 3))))).sigmoid(), None

    def attend(self, x: Tensor) -> Tensor:
        gate, _ = self.gates(x)
        return x * gate.to(x.dtype)[:, :, None, None]

    def neutral_state(self) -> tuple[dict[str, Tensor], float]:
        bias = {} if self.fc2.bias is None else dict(fc2__bias=0.)
        return self._state_with(fc2__weight=0., **bias), 0.5

    def operations(self, height: int, width: int) -> dict[str, int]:
        elements = self.in_channels * height * width
        linear = self.fc1.weight.numel() + self.fc2.weight.numel()
        return {'pool': elements, 'linear': linear, 'gate': elements}


def reduced_channels(in_channels: int, reduction: int) -> int:
    """Return the number of hidden channels of a bottleneck MLP. Raise an error if it is 0."""
    check_positive_int('reduction', reduction)
    if reduction > in_channels:
        raise ValueError(f'reduction={reduction} leaves no hidden channel of '
                         f'in_channels={in_channels}: use a reduction of at most {in_channels}')
    return in_channels // reduction
