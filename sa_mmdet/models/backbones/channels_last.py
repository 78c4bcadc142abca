"""A backbone in channels_last inside a detector that is contiguous."""
import torch
from torch import Tensor, nn


def in_channels_last(backbone: nn.Module) -> None:
    """Make a backbone compute in channels_last, whatever it is; its features stay contiguous.

    So nothing after it can tell. It matters: mmcv's operators, RoIAlign among them, read a
    channels_last map as if it were contiguous, without a word (open-mmlab/mmcv issue 2203).

    Args:
        backbone: its weights are converted in place; from these its convolutions take the layout.
            It returns a tuple of maps.

    Raises:
        ValueError: it contains one of mmcv's operators, such as a deformable convolution.
    """
    for name, module in backbone.named_modules():
        if type(module).__module__.startswith('mmcv.ops'):
            raise ValueError(
                f'channels_last does not go with {name}, a {type(module).__name__}: the operators '
                'of mmcv read contiguous maps only; leave out channels_last, or dcn')
    backbone.to(memory_format=torch.channels_last)
    backbone.register_forward_hook(_contiguous)


def _contiguous(backbone: nn.Module, inputs: tuple, features: tuple[Tensor, ...]
                ) -> tuple[Tensor, ...]:
    return tuple(feature.contiguous() for feature in features)
