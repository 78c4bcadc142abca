"""The response and the score of each group of channels, before and after the channel shuffle.

This follows Figure 2 of the paper (Zhang & Yang, arXiv 2102.00240), for detectors. The shuffle
mixes channels of two groups, one in each half of all channels, into every group that the next layer
sees.
"""
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from ...models.attention import ShuffleAttention
from ...ops.reference import channel_shuffle
from ..plots import COLOURS, png, style
from ..validate.config import ConfigError
from .detector import find_layer
from .grad_cam import Target, gradient_times_output
from .heat_maps import colour_bar, overlay, show_image, without_padding
from .pictures import Picture, detect, prepare

MOST_MAPS = 6
WIDTH, LINES_HEIGHT = 12., 5.  # inches
SERIES = [COLOURS[name] for name in ('vermilion', 'blue', 'green', 'purple', 'orange')]
LINES = ('-', '--', ':', '-.')
ORDERS = ('before the shuffle', 'after the shuffle')


@dataclass(frozen=True)
class GroupScores:
    """Shuffle attention's output by groups, before and after the shuffle.

    Attributes:
        maps: two tensors (groups, h, w): the mean over a group's channels, without padding.
        responses: two tensors (groups, ): the mean of the maps over positions.
        scores: for each target two tensors (groups, ): what the detector's score would lose
            without the group, to first order. Both have the same sum.
    """

    maps: tuple[Tensor, Tensor]
    responses: tuple[Tensor, Tensor]
    scores: dict[str, tuple[Tensor, Tensor]]


def check_groups(model: nn.Module, layer: str) -> ShuffleAttention:
    """Return the shuffle attention layer of this name; raise ConfigError if it is another layer."""
    module = find_layer(model, layer)
    if not isinstance(module, ShuffleAttention):
        raise ConfigError(f'layer {layer} is {type(module).__name__}: expected ShuffleAttention, '
                          'such as backbone.layer4.2.sa')
    return module


def group_scores(model: nn.Module, layer: str, picture: Picture,
                 targets: list[Target]) -> GroupScores:
    """Return the response and the score of each group of a shuffle attention layer.

    Args:
        model: the detector.
        layer: name of a ``ShuffleAttention`` in the detector.
        picture: the image.
        targets: the detector's scores to explain, at least one.

    Raises:
        ConfigError: The layer is not ``ShuffleAttention``, or no gradient of the score reaches it.
    """
    attention = check_groups(model, layer)
    output, sample = _output(model, attention, picture)
    scores = {}
    for target in targets:
        product = gradient_times_output(model, layer, picture, target)
        scores[target.name] = tuple(part.sum((1, 2, 3)) for part in _orders(attention, product))
    maps = tuple(without_padding(part.mean(1), sample) for part in _orders(attention, output))
    return GroupScores(maps, tuple(part.mean((1, 2)) for part in maps), scores)


@torch.no_grad()
def _output(model: nn.Module, layer: nn.Module, picture: Picture) -> tuple[Tensor, DetDataSample]:
    """Return a layer's output, on the CPU, and the data sample of the picture."""
    outputs = []
    hook = layer.register_forward_hook(lambda _, __, output: outputs.append(output.cpu().clone()))
    try:
        sample = detect(model, *prepare(model, picture))
    finally:
        hook.remove()
    return outputs[0], sample


def _orders(layer: ShuffleAttention, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return (groups, channels per group, h, w) before and after the channel shuffle."""
    before = channel_shuffle(y, y.shape[1] // 2) if layer.shuffle else y
    return tuple(part.float().reshape(layer.groups, -1, *y.shape[2:]) for part in (before, y))


def draw_groups(picture: Picture, found: GroupScores, title: str) -> bytes:
    """Draw each group's response and score, and maps of the most important groups, as a PNG."""
    height, width = picture.image.shape[:2]
    maps_height = 2 * (WIDTH / (MOST_MAPS + 1.8) * height / width + 0.5) + 0.5
    figure = Figure(figsize=(WIDTH, LINES_HEIGHT + maps_height), layout='constrained')
    figure.suptitle(title, x=0.01, ha='left')
    upper, lower = figure.subfigures(2, height_ratios=(LINES_HEIGHT, maps_height))
    _draw_lines(upper, found)
    _draw_strongest(lower, picture.image, found)
    return png(figure)


def _draw_lines(figure, found: GroupScores) -> None:
    panels = figure.subplots(2, 2, sharex=True, sharey='row')
    groups = np.arange(1, len(found.responses[0]) + 1)
    for column, order in enumerate(ORDERS):
        response, score = panels[:, column]
        values = found.responses[column]
        response.bar(groups, values, color='#777777', width=0.9)
        response.set_title(f'{order}: standard deviation {values.std(correction=0):.3g}',
                           loc='left', fontsize='medium')
        looks = itertools.cycle(itertools.product(LINES, SERIES))
        for (name, of_target), (line, colour) in zip(found.scores.items(), looks, strict=False):
            score.step(groups, of_target[column], where='mid', color=colour, linestyle=line,
                       linewidth=1.4, label=name)
        score.axhline(0, color='black', linewidth=0.8)
        score.set_xlabel('group')
        score.set_xlim(0.5, groups[-1] + 0.5)
        for axes in (response, score):
            style(axes)
    panels[0, 0].set_ylabel('response (mean output)')
    panels[1, 0].set_ylabel('score of the group')
    panels[1, 1].legend(loc='lower right', bbox_to_anchor=(1, 0.99), ncols=len(SERIES),
                        frameon=False)


def _draw_strongest(figure, image: np.ndarray, found: GroupScores) -> None:
    name, scores = next(iter(found.scores.items()))
    count = min(MOST_MAPS, len(found.responses[0]))
    limit = max(part.abs().max().item() for part in found.maps) or 1.
    norm = CenteredNorm(0, limit)
    panels = figure.subplots(2, count + 1, squeeze=False)
    for row, order in enumerate(ORDERS):
        show_image(panels[row, 0], image)
        panels[row, 0].set_ylabel(order, fontsize='medium')
        strongest = torch.argsort(scores[row], descending=True)[:count].tolist()
        for axes, group in zip(panels[row, 1:], strongest, strict=True):
            show_image(axes, overlay(image, found.maps[row][group], norm))
            axes.set_title(f'group {group + 1}\nscore {scores[row][group]:+.2g}',
                           fontsize='small', pad=3)
    colour_bar(panels, norm, 'response (white: 0)', shrink=0.8, aspect=30)
    figure.suptitle(f'Responses of the groups with the highest score for {name}', x=0.01,
                    ha='left', fontsize='medium')
