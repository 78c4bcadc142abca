"""The gates of a detector's attention on an image, and their neutral constants."""
import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...models.attention import AttentionLayer
from ...models.necks import FeatureAttention
from ..plots import COLOURS, DPI, png, style
from ..validate.config import ConfigError
from .heat_maps import colour_bar, overlay, show_image, without_padding
from .pictures import Picture, detect, prepare

CHANNEL, SPATIAL = COLOURS['vermilion'], COLOURS['blue']
MOST_MAPS, COLUMNS = 64, 8
TILES_WIDTH, GAP = 1200, 4  # pixels


@dataclass(frozen=True)
class LayerGates:
    """The gates of one attention layer on one image.

    Attributes:
        name: name of the layer in the detector; in FeatureAttention, with the level of the map.
        channel: (groups, gates per group), or None.
        spatial: (groups, h, w), the mean over a group's channels, without padding; or None.
        neutral: the constants of both at the layer's neutral parameters, with which shuffle
            attention starts; None if it has none.
    """

    name: str
    channel: Tensor | None
    spatial: Tensor | None
    neutral: tuple[float | None, float | None]

    @property
    def stage(self) -> str:
        """The stage of the block, such as 'backbone.layer4', or the FeatureAttention ('neck.1')."""
        return self.name.rsplit('.', 2)[0]

    @property
    def block(self) -> str:
        """The block within its stage, or the level of FeatureAttention."""
        return self.name.split('.')[-2]


@torch.no_grad()
def attention_gates(model: nn.Module, picture: Picture) -> list[LayerGates]:
    """Return the gates of every attention layer of a detector on a picture.

    Raises:
        ConfigError: The model has no attention layer.
    """
    necks = [module for module in model.modules() if isinstance(module, FeatureAttention)]
    inside = {layer for neck in necks for layer in neck.layers}
    watched = {name: module for name, module in model.named_modules()
               if module in necks or (isinstance(module, AttentionLayer) and module not in inside)}
    if not watched:
        raise ConfigError(f'the {type(model).__name__} has no attention layer of sa_mmdet: give '
                          'the config of a detector with attention')
    inputs, samples = prepare(model, picture)
    found = {}
    with ExitStack() as hooks:
        for name, module in watched.items():
            def keep(module, args, name=name):
                for place, layer, x in _calls(name, module, args[0]):
                    found[place] = _layer_gates(place, layer, x, samples[0])

            hooks.callback(module.register_forward_pre_hook(keep).remove)
        detect(model, inputs, samples)
    return list(found.values())


def _calls(name: str, module: nn.Module, x: Tensor | tuple[Tensor, ...]
           ) -> Iterator[tuple[str, AttentionLayer, Tensor]]:
    """Yield the attention layers that a module calls, with their names and inputs."""
    if not isinstance(module, FeatureAttention):
        yield name, module, x
        return
    for level, of_level in enumerate(x):
        if layer := module.layer_of(level):
            yield f'{name}.level{level}.{layer._abbr_}', layer, of_level


def _layer_gates(name: str, layer: AttentionLayer, x: Tensor, sample) -> LayerGates:
    channel, spatial = (None if gates is None else gates[0].float().cpu()
                        for gates in layer.gates(x))
    groups = getattr(layer, 'groups', None)
    if channel is not None:
        channel = channel.reshape(groups or len(channel), -1)
    if spatial is not None:
        spatial = spatial.reshape(groups or len(spatial), -1, *spatial.shape[-2:]).mean(1)
        spatial = without_padding(spatial, sample)
    return LayerGates(name, channel, spatial, _neutral_gates(layer))


def _neutral_gates(layer: AttentionLayer) -> tuple[float | None, float | None]:
    try:
        state, _ = layer.neutral_state()
    except ValueError:
        return None, None
    layer = copy.deepcopy(layer).cpu()
    layer.load_state_dict(state)
    gates = layer.gates(torch.zeros(1, layer.in_channels, 1, 1))
    return tuple(None if values is None else values.mean().item() for values in gates)


def draw_gates(gates: list[LayerGates], title: str) -> bytes:
    """Draw how far the gates of all blocks are from constants, and the channel gates, as a PNG.

    The upper part shows for each block the range of 98 % of its gates, the middle half and the
    median. The lower part shows for each stage the mean channel gate of each group, and the range
    of the channel gates in the last block.
    """
    stages = _stages(gates)
    with_channels = {name: layers for name, layers in stages.items()
                     if layers[0].channel is not None}
    figure = Figure(figsize=(12, 4 + (4 if with_channels else 0)), layout='constrained')
    figure.suptitle(title, x=0.01, ha='left')
    upper, *lower = figure.subfigures(2 if with_channels else 1, squeeze=False)[:, 0]
    _draw_ranges(upper.subplots(), gates)
    for part in lower:
        panels = part.subplots(1, len(with_channels), sharey=True, squeeze=False)[0]
        for axes, (name, layers) in zip(panels, with_channels.items(), strict=True):
            _draw_stage(axes, name, layers, ' ' if len(panels) <= 4 else '\n')
        panels[0].set_ylabel('channel gate, mean of a group')
    return png(figure)


def _stages(gates: list[LayerGates]) -> dict[str, list[LayerGates]]:
    """Return the layers by stage, and also by kind if a block has two."""
    kinds = {}
    for layer in gates:
        kind = layer.name.rpartition('.')[2]
        kinds.setdefault(layer.stage, {}).setdefault(kind, []).append(layer)
    return {stage if len(by_kind) == 1 else f'{stage}-{kind}': layers
            for stage, by_kind in kinds.items() for kind, layers in by_kind.items()}


def short_name(stage: str) -> str:
    """Return a stage's name within the backbone, such as 'layer4'; other names are unchanged."""
    return stage.rpartition('backbone.')[2]


def _draw_ranges(axes: Axes, gates: list[LayerGates]) -> None:
    kinds = [('channel', CHANNEL, -0.18), ('spatial', SPATIAL, 0.18)]
    gated = {kind: [place for place, layer in enumerate(gates)
                    if getattr(layer, kind) is not None] for kind, *_ in kinds}
    for kind, colour, shift in kinds:
        for place in gated[kind]:
            values = getattr(gates[place], kind).flatten().numpy()
            low, q1, median, q3, high = np.quantile(values, (0.01, 0.25, 0.5, 0.75, 0.99))
            first = f'{kind} gates' if place == gated[kind][0] else None
            place += shift if all(gated.values()) else 0
            axes.plot([place, place], [low, high], color=colour, linewidth=1.2)
            axes.plot([place, place], [q1, q3], color=colour, linewidth=6, label=first,
                      solid_capstyle='butt')
            axes.plot(place, median, marker='_', color='black', markersize=9)
    _draw_neutral(axes, [value for layer in gates for value in layer.neutral])
    axes.set_xticks(range(len(gates)), [
        f'{short_name(layer.stage)}.{layer.block}' for layer in gates],
        rotation=90 if len(gates) > 20 else 30, ha='center' if len(gates) > 20 else 'right')
    axes.set_xlim(-0.6, len(gates) - 0.4)
    axes.set_ylabel('gate')
    axes.set_title('Gates of each block: 1 to 99 % (thin), middle half (thick), median',
                   loc='left', fontsize='medium')
    style(axes)
    axes.legend(loc='lower right', bbox_to_anchor=(1, 0.99), ncols=4, frameon=False)


def _draw_neutral(axes: Axes, neutral: list[float | None]) -> None:
    values = sorted({round(value, 6) for value in neutral if value is not None})
    label = f'neutral gate: {", ".join(f"{value:.3f}" for value in values)}'
    for value in values:
        axes.axhline(value, color='black', linestyle='--', linewidth=1,
                     label=label if value == values[0] else None)


def _draw_stage(axes: Axes, name: str, layers: list[LayerGates], separator: str) -> None:
    for number, layer in enumerate(layers):
        last = layer is layers[-1]
        weight = 0.25 + 0.5 * number / max(1, len(layers) - 1)
        groups = np.arange(1, len(layer.channel) + 1)
        axes.plot(groups, layer.channel.mean(1), color=CHANNEL if last else str(1 - weight),
                  linewidth=1.6 if last else 0.8, zorder=3 if last else 2)
    last = layers[-1].channel
    if last.shape[1] > 1:
        axes.fill_between(groups, last.amin(1), last.amax(1), color=CHANNEL, alpha=0.25,
                          linewidth=0)
    neutral = layers[-1].neutral[0]
    if neutral is not None:
        axes.axhline(neutral, color='black', linestyle='--', linewidth=1)
    is_level = layers[-1].block.startswith('level')
    block = layers[-1].block if is_level else f'block {layers[-1].block}'
    earlier = f', grey: {layers[0].block} to {layers[-2].block}' if len(layers) > 1 else ''
    axes.set_title(f'{short_name(name)}:{separator}{block}{earlier}',
                   fontsize='medium' if separator == ' ' else 'small', loc='left')
    axes.set_xlabel('group' if last.shape[1] > 1 else 'channel')
    axes.set_xlim(groups[0], max(groups[-1], 2))
    style(axes)


def draw_spatial_gates(image: np.ndarray, gates: list[LayerGates]) -> dict[str, bytes]:
    """Draw the spatial gates of each stage's last block over the image, group by group.

    For FeatureAttention, the largest map is drawn.

    If there are more than 64 groups, those that vary most over the image are drawn.

    Args:
        image: (H, W, 3) uint8, RGB.
        gates: gates from ``attention_gates``.

    Returns:
        PNGs by stage, without stages that have no spatial gates.
    """
    return {name: _draw_maps(image, layers[_largest(layers)])
            for name, layers in _stages(gates).items() if layers[-1].spatial is not None}


def _largest(layers: list[LayerGates]) -> int:
    """Return the index of the last block, or of the level with the most positions."""
    if not layers[-1].block.startswith('level'):
        return len(layers) - 1
    return max(range(len(layers)), key=lambda number: layers[number].spatial[0].numel())


def _draw_maps(image: np.ndarray, layer: LayerGates) -> bytes:
    maps, neutral = layer.spatial, layer.neutral[1]
    shown = maps.flatten(1).std(1, correction=0).argsort(descending=True)[:MOST_MAPS].sort().values
    norm = Normalize(maps.min(), maps.max()) if neutral is None else CenteredNorm(
        neutral, max((maps - neutral).abs().max().item(), 1e-6))
    width = (TILES_WIDTH - GAP) // min(COLUMNS, len(shown)) - GAP
    tiles = [overlay(image, maps[group], norm, width) for group in shown]
    sheet, corners = _sheet(tiles)

    inches = sheet.shape[1] / DPI
    figure = Figure(figsize=(inches + 1, sheet.shape[0] / DPI + 0.4), layout='constrained')
    axes = figure.subplots()
    show_image(axes, sheet)
    for (x, y), group in zip(corners, shown.tolist(), strict=True):
        axes.text(x + 3, y + 3, f'{group + 1}: {maps[group].min():.3f} to {maps[group].max():.3f}',
                  va='top', fontsize=min(8, width / 19), color='white',
                  bbox=dict(facecolor='black', alpha=0.65, pad=1.2, linewidth=0))
    colour_bar(axes, norm, 'gate' if neutral is None else
               f'gate (white: {neutral:.3f}, neutral)', aspect=40)
    of = '' if len(shown) == len(maps) else f', the {len(shown)} of {len(maps)} that vary most'
    axes.set_title(f'Spatial gates of {layer.name}: number of the group, range over the image{of}',
                   loc='left')
    return png(figure)


def _sheet(tiles: list[np.ndarray]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return tiles of one size in rows on white, and the corner (x, y) of each."""
    height, width = tiles[0].shape[:2]
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    corners = [(GAP + column * (width + GAP), GAP + row * (height + GAP))
               for row in range(rows) for column in range(columns)][:len(tiles)]
    sheet = np.full((GAP + rows * (height + GAP), GAP + columns * (width + GAP), 3), 255, np.uint8)
    for (x, y), tile in zip(corners, tiles, strict=True):
        sheet[y:y + height, x:x + width] = tile
    return sheet, corners
