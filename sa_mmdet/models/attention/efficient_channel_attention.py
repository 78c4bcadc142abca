import math

from torch import Tensor, nn

from .base import AttentionLayer, check_number, register_attention


@register_attention
class EfficientChannelAttention(AttentionLayer):
    """Efficient channel attention (ECA-Net, Wang et al., arXiv 1910.03151, equations 9 and 12).

    Every channel is gated by the sigmoid of a 1-D convolution, without bias, over the global
    averages of its k neighbours. k is (log2 C + b) / gamma, rounded down, plus 1 if that is even.

    Args:
        in_channels: channels C of the input.
        gamma, b: the mapping from C to k; 2 and 1 in the paper.

    Shape:
        (N, C, H, W) -> (N, C, H, W).

    Raises:
        TypeError: ``in_channels`` is not an integer, or ``gamma`` or ``b`` not a number.
        ValueError: ``in_channels`` is below 1, ``gamma`` not positive, or a number not finite.
    """

    _abbr_ = 'eca'

    def __init__(self, in_channels: int, gamma: float = 2, b: float = 1):
        super().__init__(in_channels)
        check_number('gamma', gamma)
        check_number('b', b)
        if gamma <= 0:
            raise ValueError(f'gamma must be positive, got {gamma}')
        k = int(abs((math.log2(in_channels) + b) / gamma))
        k += 1 - k % 2
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def gates(self, x: Tensor) -> tuple[Tensor, None]:
        return self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid(), None

    def attend(self, x: Tensor) -> Tensor:
        gate, _ = self.gates(x)
        return x * gate.to(x.dtype)[:, :, None, None]

    def neutral_state(self) -> tuple[dict[str, Tensor], float]:
        return self._state_with(conv__weight=0.), 0.5

    def operations(self, height: int, width: int) -> dict[str, int]:
        elements = self.in_channels * height * width
        conv1d = self.in_channels * self.conv.kernel_size[0]
        return {'pool': elements, 'conv1d': conv1d, 'gate': elements}
