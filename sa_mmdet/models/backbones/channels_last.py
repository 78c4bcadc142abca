"""Run a backbone in channels_last inside a contiguous detector."""
import torch
from torch import Tensor, nn


def in_channels_last(backbone: nn.Module) -> None:
    """Make a backbone compute in channels_last but return contiguous features.

    Nothing after it notices. That matters, as mmcv's operators, RoIAlign among them, silently read
    a channels_last map as if it were contiguous (https://github.com/open-mmlab/mmcv/issues/2203).

    Args:
        backbone: a module that returns a map or a tuple of maps. Its convolutions' weights are
            converted in place, and its convolutions take the layout from them.

    Raises:
        ValueError: the backbone contains an mmcv operator, such as a deformable convolution.
    """
    for name, module in backbone.named_modules():
        if any(kind.__module__.startswith('mmcv.ops') for kind in type(module).__mro__):
            raise ValueError(
                f'channels_last does not work with {name or "the backbone"}, a '
                f'{type(module).__name__}: mmcv operators only read contiguous maps. Remove '
                'channels_last or dcn')
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):  # the operator's parameters stay contiguous like their
            module.to(memory_format=torch.channels_last)  # gradients, or DDP would copy these
    backbone.register_forward_hook(_contiguous)


def _contiguous(backbone: nn.Module, inputs: tuple, features: Tensor | tuple[Tensor, ...]
                ) -> Tensor | tuple[Tensor, ...]:
    if isinstance(features, Tensor):
        return features.contiguous()
    return tuple(feature.contiguous() for feature in features)
