"""Attention on the maps between a detector's backbone, neck and head."""
from collections.abc import Sequence

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...ops.dispatch import is_traced
from ..attention import AttentionLayer
from ..attention.base import check_bool, check_positive_int, find_layer


@MODELS.register_module()
class FeatureAttention(BaseModule):
    """An attention layer on each of a detector's maps, which starts as the identity.

    The module divides the layer's output by its neutral gate and undoes its channel permutation. At
    neutral parameters, every map passes unchanged. You can put the module anywhere in a trained
    detector: its detections don't change, and it learns from there. In a config, it goes into a
    list of necks, before or after another neck:
    ``neck=[{{_base_.model.neck}}, dict(type='FeatureAttention', in_channels=256)]``.

    A checkpoint of a detector without it is converted when it is loaded (docs/weights.md).

    Args:
        attention: the layer's type, or its config: ``dict(type='ShuffleAttention', groups=32)``.
        in_channels: list of the channels of each map, for one layer per map. Or one number, for one
            layer that all maps share, however many there are.
        levels: indices, from 0, of the maps with attention. The others pass unchanged. None for
            all maps.
        shared: True shares one layer among the maps of a list, which must have equal channels.

    Shape:
        A tuple of (N, C_i, H_i, W_i) -> a tuple of the same shapes and dtypes.

    Raises:
        TypeError, ValueError: the layer is unknown, does not fit the channels or cannot be
            neutral. ``in_channels``, ``levels`` or ``shared`` is not as above. In a call, the maps
            do not match ``in_channels`` and ``levels``.
        ConversionError: on loading, the checkpoint has only a part of the parameters, or attention
            in another place.
    """

    def __init__(self,
                 attention: str | dict = 'ShuffleAttention',
                 in_channels: int | list[int] | tuple[int, ...] = 256,
                 levels: list[int] | tuple[int, ...] | None = None,
                 shared: bool = False):
        super().__init__()
        check_bool('shared', shared)
        self.takes_any_number = not isinstance(in_channels, (list, tuple))
        self.in_channels = list(in_channels) if isinstance(in_channels, (list, tuple)) else [
            in_channels]
        if not self.in_channels:
            raise ValueError('in_channels must be one number, or one for each map, got []')
        for channels in self.in_channels:
            check_positive_int('in_channels', channels)
        self.shared = shared or self.takes_any_number
        self.levels = None if levels is None else _checked_levels(
            levels, None if self.takes_any_number else len(self.in_channels))
        self.layers = nn.ModuleList(
            _build_layer(attention, channels) for channels in self._channels_of_layers())
        _, self.neutral_gate = self.layers[0].neutral_state()
        self.load_state_dict(self.neutral_state())

    def _channels_of_layers(self) -> list[int]:
        if self.takes_any_number:
            return self.in_channels
        channels = [c for level, c in enumerate(self.in_channels) if self._is_attended(level)]
        if self.shared and len(set(channels)) > 1:
            raise ValueError(f'shared=True needs maps of equal channels, got {channels}. Leave it '
                             'out, or choose other levels')
        return channels[:1] if self.shared else channels

    def _is_attended(self, level: int) -> bool:
        return self.levels is None or level in self.levels

    def neutral_state(self) -> dict[str, Tensor]:
        """Return the whole state dict with which every map passes unchanged."""
        return {f'layers.{place}.{key}': value for place, layer in enumerate(self.layers)
                for key, value in layer.neutral_state()[0].items()}

    def init_weights(self) -> None:
        """Make all layers neutral on the first call, whatever the model around them has drawn."""
        is_first = not self.is_init
        super().init_weights()
        if is_first:
            self.load_state_dict(self.neutral_state())

    def layer_of(self, level: int) -> nn.Module | None:
        """Return the layer for the map at an index, or None if the map passes unchanged."""
        if not self._is_attended(level):
            return None
        place = 0 if self.shared else level if self.levels is None else self.levels.index(level)
        return self.layers[place]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Apply attention to maps.

        Args:
            maps: (N, C_i, H_i, W_i) each.

        Returns:
            As many maps, with the same shapes and dtypes.

        Raises:
            TypeError: ``maps`` is not a tuple or list of floating-point tensors.
            ValueError: the maps have another number or other channels than expected.
        """
        self._check_maps(maps)
        return tuple(self._attend(self.layer_of(level), x) for level, x in enumerate(maps))

    def _attend(self, layer: nn.Module | None, x: Tensor) -> Tensor:
        return x if layer is None else layer.unpermute(layer(x)) / self.neutral_gate

    def _check_maps(self, maps: Sequence[Tensor]) -> None:
        if not isinstance(maps, (tuple, list)):
            raise TypeError('FeatureAttention takes a tuple of maps, as MMDetection backbones and '
                            f'necks return, got {type(maps).__name__}')
        if maps and is_traced(maps[0]):
            return
        found, expected = [x.shape[1] for x in maps], self.in_channels
        if self.takes_any_number:
            expected = expected * max(len(maps), 1 + max(self.levels or [0]))
        if len(found) != len(expected) or any(
                self._is_attended(level) and a != b
                for level, (a, b) in enumerate(zip(found, expected, strict=True))):
            raise ValueError(
                f'FeatureAttention has {self.extra_repr()}, but got {len(maps)} maps of {found} '
                'channels: give it in_channels and levels that match the maps')

    def extra_repr(self) -> str:
        channels = self.in_channels[0] if self.takes_any_number else self.in_channels
        return f'in_channels={channels}, levels={self.levels}, shared={self.shared}'


def _checked_levels(levels: list[int] | tuple[int, ...], maps: int | None) -> list[int]:
    if not isinstance(levels, (list, tuple)) or not all(type(level) is int for level in levels):
        raise TypeError(f'levels must be a list of integers, or None for all maps, got {levels!r}')
    if not levels or len(set(levels)) < len(levels) or min(levels) < 0 or (
            maps and max(levels) >= maps):
        last = f' to {maps - 1}' if maps else ''
        raise ValueError(f'levels must be different indices of maps, from 0{last}, got '
                         f'{list(levels)}')
    return sorted(levels)


def _build_layer(attention: str | dict, channels: int) -> AttentionLayer:
    cfg = find_layer(attention)
    cfg.pop('postfix', None)  # part of a plugin's name
    kind = cfg.pop('type')
    layer = kind(in_channels=channels, **cfg)
    if not isinstance(layer, AttentionLayer):
        raise ValueError(f'{kind.__name__} has no neutral parameters, with which FeatureAttention '
                         'starts as the identity: use a layer of sa_mmdet, or a subclass of its '
                         'AttentionLayer')
    try:
        layer.neutral_state()
    except ValueError as error:
        raise ValueError(f'FeatureAttention cannot be the identity: {error}. Use another layer or '
                         'other options') from error
    return layer
