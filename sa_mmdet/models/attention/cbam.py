import torch
from torch import Tensor, nn

from .base import AttentionLayer, check_positive_int, register_attention
from .squeeze_excitation import reduced_channels


@register_attention
class CBAM(AttentionLayer):
    """Convolutional block attention module (Woo et al., arXiv 1807.06521, equations 1 to 3).

    An MLP runs over the global average and the global maximum of the channels, and the sum of its
    outputs gates each channel. Then a convolution with batch norm over the mean and the maximum of
    the channels gates each position.

    Args:
        in_channels: channels C of the input.
        reduction: the MLP has C / reduction hidden channels; 16 in the paper.
        kernel_size: kernel size of the spatial convolution, odd; 7 in the paper.

    Shape:
        (N, C, H, W) -> (N, C, H, W), H and W at least 1.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is below 1, ``reduction`` exceeds ``in_channels``, or
            ``kernel_size`` is even.
    """

    _abbr_ = 'cbam'

    def __init__(self, in_channels: int, reduction: int = 16, kernel_size: int = 7):
        super().__init__(in_channels)
        hidden = reduced_channels(in_channels, reduction)
        check_positive_int('kernel_size', kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size}')
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hidden), nn.ReLU(), nn.Linear(hidden, in_channels))
        self.spatial = nn.Sequential(
            nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(1, momentum=0.01))

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channel = self._channel_gate(x)
        return channel, self._spatial_gate(x * channel.to(x.dtype)[:, :, None, None])

    def attend(self, x: Tensor) -> Tensor:
        x = x * self._channel_gate(x).to(x.dtype)[:, :, None, None]
        return x * self._spatial_gate(x).to(x.dtype)

    def _channel_gate(self, x: Tensor) -> Tensor:
        return (self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))).sigmoid()

    def _spatial_gate(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return self.spatial(pooled).sigmoid()

    def neutral_state(self) -> tuple[dict[str, Tensor], float]:
        # A batch norm with weight zero returns zero for any statistics, and still learns.
        return self._state_with(
            mlp__2__weight=0., mlp__2__bias=0., spatial__1__weight=0., spatial__1__bias=0.), 0.25

    def operations(self, height: int, width: int) -> dict[str, int]:
        positions = height * width
        elements = self.in_channels * positions
        return {
            'pool': 2 * elements,
            'channel_pool': 2 * elements,
            'linear': 2 * (self.mlp[0].weight.numel() + self.mlp[2].weight.numel()),
            'conv': positions * self.spatial[0].weight.numel(),
            'batch_norm': positions,
            'gate': 2 * elements
        }
