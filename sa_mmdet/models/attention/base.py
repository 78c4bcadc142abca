"""The base class of all attention layers, and their checks, registration and lookup."""
import inspect
import math
from numbers import Integral, Real

import torch
from mmdet.registry import MODELS
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from ...ops.dispatch import is_traced


def register_attention(layer: type) -> type:
    """Register ``layer`` for MMDetection and in the root registry, where mmcv keeps its plugins.

    mmcv looks a plugin up in the default scope. A backbone built by hand has no default scope, and
    finds the layer in the root registry.
    """
    ROOT_MODELS.register_module(module=layer)
    return MODELS.register_module(module=layer)


def find_layer(cfg: str | dict) -> dict:
    """Return the config of an attention layer, with its class as ``type``.

    Args:
        cfg: the layer's type, or its config.

    Raises:
        TypeError: the layer does not take an option.
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
        raise ValueError(f'unknown attention type {cfg["type"]!r}: use one of {", ".join(known)}, '
                         'or any plugin layer registered in mmdet.registry.MODELS')
    signature = inspect.signature(layer)
    try:
        signature.bind(in_channels=0, **{key: value for key, value in cfg.items()
                                         if key not in ('type', 'postfix')})
    except TypeError as error:
        raise TypeError(f'attention {dict(cfg)}: {error}. {layer.__name__} takes '
                        f'{signature}') from error
    return dict(cfg, type=layer)


def check_positive_int(name: str, value: int) -> None:
    """Raise TypeError or ValueError unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be an integer, got {value!r}')
    if value < 1:
        raise ValueError(f'{name} must be at least 1, got {value}')


def find_groups(in_channels: int, groups: int | str, parts: int = 1) -> int:
    """Return a layer's number of groups, each of which has ``parts`` equal parts.

    Args:
        in_channels: channels of the input.
        groups: the number, or 'auto' for the largest number up to 64 that fits.

    Raises:
        TypeError: ``groups`` is neither an integer nor 'auto'.
        ValueError: ``groups`` is below 1, or parts * groups does not divide the channels.
    """
    if not isinstance(groups, str):
        check_positive_int('groups', groups)
    elif groups != 'auto':
        raise TypeError(f"groups must be an integer, or 'auto', got {groups!r}")
    fitting = [g for g in range(1, in_channels + 1) if in_channels % (parts * g) == 0]
    if not fitting:
        raise ValueError(f'in_channels={in_channels} is not divisible by {parts} * groups, as it '
                         'is odd. Use an even number of channels')
    if groups == 'auto':
        return max(g for g in fitting if g <= 64)
    if groups not in fitting:
        by = f'groups={groups}' if parts == 1 else (
            f'{parts} * groups = {parts * groups} (groups={groups})')
        raise ValueError(f'in_channels={in_channels} is not divisible by {by}: use one of '
                         f"groups={fitting}, or 'auto' for the largest up to 64")
    return groups


def check_bool(name: str, value: bool) -> None:
    """Raise TypeError unless ``value`` is a bool, as text such as 'no' would count as True."""
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
        name: name of the module that takes ``x``.
    """
    if is_traced(x):
        return
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f'{name} expects a floating-point tensor, got {found}. Convert it, for '
                        'example by torch.as_tensor(x).float()')
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f'{name} expects input of shape (N, {channels}, H, W), got '
                         f'{tuple(x.shape)}')


def sigmoid(x: float) -> float:
    """Return the logistic function of a number, in double precision."""
    return 1 / (1 + math.exp(-x))


class AttentionLayer(nn.Module):
    """A layer that reweights a feature map and keeps its shape and dtype.

    Subclasses define ``attend`` and ``_abbr_``, the layer's name in a backbone's bottleneck.

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
            TypeError: ``x`` is not a floating-point tensor.
            ValueError: ``x`` is not 4-D or does not have C channels.
        """
        check_feature_map(type(self).__name__, x, self.in_channels)
        return self.attend(x)

    def gates(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gates that ``forward`` multiplies ``x`` with, for pictures.

        Args:
            x: (N, C, H, W).

        Returns:
            Channel gates, (N, K), for the K gated channels in the order of ``x``; and spatial
            gates, (N, G, H, W), for the G groups or channels that have their own. None for what
            the layer does not gate. All gates are in [0, 1].
        """
        raise NotImplementedError

    def neutral_state(self) -> tuple[dict[str, Tensor], float]:
        """Return parameters that make the layer a constant factor, up to a channel permutation.

        They make every gate a constant, whatever the input, and training can still change them.

        Returns:
            A whole state dict of this layer, and the factor.

        Raises:
            ValueError: no parameters make this layer's gate constant.
        """
        raise ValueError(f'{type(self).__name__} has no constant gate')

    def unpermute(self, y: Tensor) -> Tensor:
        """Return an output of the layer with its channels in the order of the input.

        Args:
            y: (N, C, H, W).

        Returns:
            (N, C, H, W): ``y`` itself if the layer moves no channel.
        """
        return y

    def source_channels(self) -> Tensor:
        """Return the order of input channels that the layer's permutation undoes.

        Returns:
            (C,), int64. Put channel ``source_channels()[i]`` of a tensor at place i: at neutral
            parameters, the layer returns the tensor times the factor of ``neutral_state``.
        """
        return self.unpermute(torch.arange(self.in_channels).reshape(1, -1, 1, 1)).flatten()

    def operations(self, height: int, width: int) -> dict[str, int]:
        """Count what the layer computes on one image, whichever implementation runs.

        Args:
            height, width: size of the input in pixels.

        Returns:
            Counts by kind, which a counting convention weighs (``sa_mmdet.apps.paper``). 'pool':
            elements reduced over positions. 'channel_pool': elements reduced over channels.
            'linear', 'conv1d', 'similarity': multiply-adds. 'conv': multiply-adds and additions
            of biases. 'batch_norm', 'group_norm': elements normalised. 'gate': multiplications of
            an element by its gate. Functions of single gates, such as a sigmoid, don't count.
        """
        raise NotImplementedError

    def _state_with(self, **values: float) -> dict[str, Tensor]:
        """Return a copy of the state dict with some parameters filled ('__' for '.' in a name)."""
        state = {key: value.detach().clone() for key, value in self.state_dict().items()}
        for name, value in values.items():
            state[name.replace('__', '.')].fill_(value)
        return state

    def attend(self, x: Tensor) -> Tensor:
        """Reweight ``x``, whose shape has been checked."""
        raise NotImplementedError
