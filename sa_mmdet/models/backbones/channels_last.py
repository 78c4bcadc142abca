"""A backbone in channels_last inside a detector that is contiguous."""
import torch
from torch import Tensor, nn


def in_channels_last(backbone: nn.Module) -> None:
    """Make a backbone compute in channels_last; what it returns stays contiguous.

    So nothing after it can tell. It matters: mmcv's operators, RoIAlign among them, read a
    channels_last map as if it were contiguous, without a word (https://github.com/open-mmlab/mmcv/issues/2203).

    Args:
        backbone: its convolutions' weights are converted in place; from these they take the
            layout. It returns a map, or a tuple of maps.

    Raises:
        ValueError: it contains one of mmcv's operators, such as a deformable convolution.
    """
    for name, module in backbone.named_modules():
        if any(kind.__module__.startswith('mmcv.ops') for kind in type(module).__mro__):
            raise ValueError(
                f'channels_last does not go with {name or "it"}, a {type(module).__name__}: the '
                'operators of mmcv read contiguous maps only; leave out channels_last, or dcn')
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):  # the operator's parameters are contiguous, as their
            module.to(memory_format=torch.channels_last)  # gradients, for DistributedDataParallel
    backbone.register_forward_hook(_contiguous)


def _contiguous(backbone: nn.Module, inputs: tuple, features: Tensor | tuple[Tensor, ...]
                ) -> Tensor | tuple[Tensor, ...]:
    if isinstance(features, Tensor):
        return features.contiguous()
    return tuple(feature.contiguous() for feature in features)
