"""What every attention layer shares: its checks, its registration, and how it is found."""
import inspect
import math
from numbers import Integral, Real

import torch
from mmdet.registry import MODELS
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from ...ops.dispatch import is_traced


def register_attention(layer: type) -> type:
    """Register ``layer`` for MMDetection, and where mmcv keeps its own plugin layers.

    mmcv looks a plugin up in the default scope; a backbone built by hand, with no default scope,
    finds it in the root registry.
    """
    ROOT_MODELS.register_module(module=layer)
    return MODELS.register_module(module=layer)


def find_layer(cfg: str | dict) -> dict:
    """Return the config of an attention layer with its class as type.

    Args:
        cfg: the layer's type, or its config.

    Raises:
        TypeError: an option is not one of the layer's.
        ValueError: there is no such layer.
    """
    if isinstance(cfg, str):
        cfg = dict(type=cfg)
    if not isinstance(cfg, dict) or not cfg.get('type'):
        raise ValueError('attention must be the name of a layer or a config with a "type", such as '
                         f"dict(type='ShuffleAttention', groups=32), got {cfg!r}")
    layer = cfg['type']
    if isinstance(layer, str):
        layer = MODELS.get(layer)
    if not isinstance(layer, type) or not issubclass(layer, nn.Module):
        known = sorted(kind.__name__ for kind in AttentionLayer.__subclasses__())
        raise ValueError(f'unknown attention type {cfg["type"]!r}: known are {", ".join(known)}, '
                         'and any plugin layer registered in mmdet.registry.MODELS')
    signature = inspect.signature(layer)
    try:
        signature.bind(in_channels=0, **{key: value for key, value in cfg.items()
                                         if key not in ('type', 'postfix')})
    except TypeError as error:
        raise TypeError(f'attention {dict(cfg)}: {error}; {layer.__name__} takes '
                        f'{signature}') from error
    return dict(cfg, type=layer)


def check_positive_int(name: str, value: int) -> None:
    """Raise TypeError or ValueError unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be an integer, got {value!r}')
    if value < 1:
        raise ValueError(f'{name} must be at least 1, got {value}')


def find_groups(in_channels: int, groups: int | str, parts: int = 1) -> int:
    """Return the number of groups of a layer, each of which has ``parts`` equal parts.

    Args:
        in_channels: channels of the input.
        groups: the number, or 'auto' for the largest up to 64 that divides the channels.

    Raises:
        TypeError: ``groups`` is neither an integer nor 'auto'.
        ValueError: it is below 1, or the channels do not divide.
    """
    if not isinstance(groups, str):
        check_positive_int('groups', groups)
    elif groups != 'auto':
        raise TypeError(f"groups must be an integer, or 'auto', got {groups!r}")
    fitting = [g for g in range(1, in_channels + 1) if in_channels % (parts * g) == 0]
    if not fitting:
        raise ValueError(f'in_channels={in_channels} is not divisible by {parts} * groups: an odd '
                         'number never is, use an even one')
    if groups == 'auto':
        return max(g for g in fitting if g <= 64)
    if groups not in fitting:
        by = f'groups={groups}' if parts == 1 else (
            f'{parts} * groups = {parts * groups} (groups={groups})')
        raise ValueError(f'in_channels={in_channels} is not divisible by {by}: use one of '
                         f"groups={fitting}, or 'auto' for the largest up to 64")
    return groups


def check_bool(name: str, value: bool) -> None:
    """Raise TypeError unless ``value`` is a bool: a text such as 'no' would count as True."""
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, got {value!r}')


def check_number(name: str, value: float, minimum: float = -math.inf) -> None:
    """Raise TypeError or ValueError unless ``value`` is a finite number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name} must be a number, got {value!r}')
    if not math.isfinite(value) or value < minimum:
        at_least = f' of at least {minimum}' if math.isfinite(minimum) else ''
        raise ValueError(f'{name} must be a finite number{at_least}, got {value}')


def check_feature_map(name: str, x: Tensor, channels: int) -> None:
    """Raise TypeError or ValueError unless ``x`` is (N, ``channels``, H, W) in floating point.

    Args:
        name: of the module that ``x`` is given to.
    """
    if is_traced(x):
        return
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = f'one of {x.dtype}' if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f'{name} expects a floating point tensor, got {found}: convert it, by '
                        'torch.as_tensor(x).float() for example')
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f'{name} expects input of shape (N, {channels}, H, W), got '
                         f'{tuple(x.shape)}')


def sigmoid(x: float) -> float:
    """Return the logistic function of a number, in double precision."""
    return 1 / (1 + math.exp(-x))


class AttentionLayer(nn.Module):
    """A layer that reweights a feature map and keeps its shape and dtype.

    Subclasses define ``attend`` and ``_abbr_``, the name under which a backbone's bottleneck
    holds the layer.

    Args:
        in_channels: channels C of the input.

    Raises:
        TypeError, ValueError: ``in_channels`` is not a positive integer.
    """

    _abbr_: str

    def __init__(self, in_channels: int):
        super().__init__()
        check_positive_int('in_channels', in_channels)
        self.in_channels = in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Reweight ``x``.

        Args:
            x: (N, C, H, W).

        Returns:
            (N, C, H, W) in the dtype of ``x``, under autocast too.

        Raises:
            TypeError: ``x`` is no tensor, or not of a floating dtype.
            ValueError: ``x`` is not 4-D or has other than C channels.
        """
        check_feature_map(type(self).__name__, x, self.in_channels)
        return self.attend(x)

    def gates(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What ``forward`` multiplies ``x`` with, for pictures.

        Args:
            x: (N, C, H, W).

        Returns:
            Gates of channels, (N, K), in the order in which ``x`` has those that are gated, and of
            positions, (N, G, H, W), G for each group or channel that has its own; None for what
            the layer does not gate. All in [0, 1].
        """
        raise NotImplementedError

    def neutral_state(self) -> tuple[dict[str, Tensor], float]:
        """Parameters with which the layer is a constant factor, up to a permutation of channels.

        They leave every gate one constant, whatever the input, and can be learned away from.

        Returns:
            A whole state dict of this layer, and the factor.

        Raises:
            ValueError: no parameters make this layer's gate constant.
        """
        raise ValueError(f'{type(self).__name__} has no constant gate')

    def unpermute(self, y: Tensor) -> Tensor:
        """Return an output of the layer with every channel where it stood in the input.

        Args:
            y: (N, C, H, W).

        Returns:
            (N, C, H, W): ``y`` itself for a layer that moves no channel.
        """
        return y

    def source_channels(self) -> Tensor:
        """Return where each channel has to come from so that neutral parameters leave all in place.

        Returns:
            (C,), int64: with channel ``source_channels()[i]`` of a tensor put at place i, the
            layer gives the tensor back in its own order, times the factor of ``neutral_state``.
        """
        return self.unpermute(torch.arange(self.in_channels).reshape(1, -1, 1, 1)).flatten()

    def operations(self, height: int, width: int) -> dict[str, int]:
        """What the layer computes on one image, whichever implementation runs.

        Args:
            height, width: of the input, in pixels.

        Returns:
            Counts by kind, for a counting convention to weigh (``sa_mmdet.apps.paper``):
            'pool', elements reduced over positions; 'channel_pool', over channels; 'linear',
            'conv1d', 'similarity', multiply-adds; 'conv', multiply-adds and additions of biases;
            'batch_norm', 'group_norm', elements normalised; 'gate', multiplications of an element
            by its gate. Functions of single gates, such as a sigmoid, are not counted.
        """
        raise NotImplementedError

    def _state_with(self, **values: float) -> dict[str, Tensor]:
        """Return a copy of the state dict with whole parameters set; '.' in a name written '__'."""
        state = {key: value.detach().clone() for key, value in self.state_dict().items()}
        for name, value in values.items():
            state[name.replace('__', '.')].fill_(value)
        return state

    def attend(self, x: Tensor) -> Tensor:
        """Reweight ``x``, whose shape has been checked."""
        raise NotImplementedError
