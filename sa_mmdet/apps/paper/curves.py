"""Learning curves: losses, validation, learning rate and gradient norm from MMEngine's log."""
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from ..plots import COLOURS, png, style

LOG = '*/vis_data/scalars.json'  # in a work dir, once for each attempt
TOTAL = 'loss'
AP = {'coco/bbox_mAP': 'box', 'coco/segm_mAP': 'mask'}
ACCURACY = {'accuracy/top1': 'top-1', 'accuracy/top5': 'top-5'}
PERCENT = dict.fromkeys(AP, 100) | dict.fromkeys(ACCURACY, 1)  # factors of the logged values
LABELS = {TOTAL: 'total', **AP, **ACCURACY}
PART_COLOURS = [COLOURS[name] for name in (
    'vermilion', 'blue', 'green', 'orange', 'sky blue', 'purple', 'grey')]
FAINT = 0.25
FEW, LONG = 25, 100  # below FEW points, curves have markers; from LONG on, they are smoothed


class LogError(Exception):
    """There is no training log to draw; the message says what was found."""


@dataclass(frozen=True)
class Log:
    """The log of a training, as if it had never been interrupted.

    Attributes:
        training: losses, learning rate and so on, by the iteration after which they were logged.
        validation: metrics, by the epoch after which they were measured.
        epoch_length: iterations per epoch.
    """

    training: dict[int, dict[str, float]]
    validation: dict[int, dict[str, float]]
    epoch_length: float

    @property
    def losses(self) -> list[str]:
        """Names of the total loss and its parts, as in the log."""
        names = dict.fromkeys(itertools.chain(*self.training.values()))
        return [TOTAL, *(name for name in names if 'loss' in name and name != TOTAL)]

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return iterations and values of a name in the log, both (points,) with points >= 0.

        Metrics are in percent. COCO's AP of -1, which means no objects, is left out.
        """
        if name in PERCENT:
            points = [(epoch * self.epoch_length, PERCENT[name] * metrics[name])
                      for epoch, metrics in self.validation.items() if metrics.get(name, -1) >= 0]
        else:
            points = [(iteration, scalars[name])
                      for iteration, scalars in self.training.items() if name in scalars]
        return tuple(np.array(points, float).reshape(-1, 2).T)


def read_log(folder: Path) -> Log:
    """Return the log of an epoch-based training, however often it was resumed.

    If iterations were repeated after resuming, the last attempt counts. Incomplete lines, which a
    killed process leaves, are skipped.

    Args:
        folder: MMEngine's work dir, with ``<timestamp>/vis_data/scalars.json``.

    Raises:
        LogError: There is no log, it cannot be read, or it has no iterations.
    """
    paths = sorted(folder.glob(LOG))
    if not paths:
        raise LogError(f'{folder} has no training log ({LOG})')
    training, validation = {}, {}
    for record in itertools.chain.from_iterable(map(_records, paths)):
        step, epoch = record['step'], record.get('epoch')
        if TOTAL not in record:
            validation[step] = record
        elif epoch is not None:
            if training and step <= next(reversed(training)):  # resumed from an earlier checkpoint
                training = {s: other for s, other in training.items() if s < step}
                validation = {e: other for e, other in validation.items() if e < epoch}
            training[step] = record
    if not training:
        raise LogError(f'{paths[-1]} has no iterations of an epoch-based training: it is empty, '
                       'damaged or another kind of log')
    return Log(training, validation, _epoch_length(training))


def _records(path: Path) -> Iterator[dict[str, float]]:
    try:
        lines = path.read_text(errors='replace').splitlines()
    except OSError as error:
        raise LogError(f'{path} cannot be read: {error.strerror}') from None
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get('step'), int):
            yield {name: value for name, value in record.items() if isinstance(value, int | float)}


def _epoch_length(training: dict[int, dict[str, float]]) -> float:
    """Return the iterations per epoch, from the first lines of the first and the last epoch."""
    first = {}
    for iteration, scalars in training.items():
        first.setdefault(scalars['epoch'], iteration)
    (start, begin), (end, last) = min(first.items()), max(first.items())
    return (last - begin) / (end - start) if end > start else max(training) / end


def draw_curves(logs: list[Log], title: str) -> bytes:
    """Draw the learning curves of one training, or of several with different seeds, as a PNG.

    From top to bottom: the loss and its parts, AP or accuracy on the validation images if measured,
    the learning rate, and the gradient norm if logged. Long noisy curves are drawn as their running
    median. For a single training, the logged values are drawn behind it.

    Args:
        logs: at least one log, all from the same config.
        title: title of the picture.
    """
    panels = _panels(logs)
    heights = [panel.height for panel in panels]
    figure = Figure(figsize=(9, 1 + 1.3 * sum(heights)), layout='constrained')
    all_axes = figure.subplots(len(panels), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw(axes, panel, logs)
    _label_both_sides(all_axes[0], all_axes[-1], logs[0].epoch_length)
    figure.align_ylabels()
    figure.suptitle(title, x=0.01, ha='left', fontsize='large')
    return png(figure)


@dataclass(frozen=True)
class _Panel:
    """What is drawn on the same axes; ``height`` is relative to the other panels."""

    label: str
    names: list[str]
    height: int
    noisy: bool = True
    logarithmic: bool = True


def _panels(logs: list[Log]) -> list[_Panel]:
    """Return the panels with something to draw."""
    panels = [
        _Panel('loss', logs[0].losses, 3),
        _Panel('validation AP (%)', list(AP), 2, noisy=False, logarithmic=False),
        _Panel('validation\naccuracy (%)', list(ACCURACY), 2, noisy=False, logarithmic=False),
        _Panel('learning rate', ['lr'], 1, noisy=False),
        _Panel('gradient norm', ['grad_norm'], 1)]
    logged = [[name for name in panel.names if any(log.curve(name)[0].size for log in logs)]
              for panel in panels]
    return [replace(panel, names=names)
            for panel, names in zip(panels, logged, strict=True) if names]


def _draw(axes: Axes, panel: _Panel, logs: list[Log]) -> None:
    """Draw a line for each name and log; several logs get thin lines of the same colour."""
    alone = len(logs) == 1
    smooth = panel.noisy and max(len(log.training) for log in logs) >= LONG
    colours = PART_COLOURS if panel.names[0] in PERCENT else ['black', *PART_COLOURS]
    handles = []
    for name, colour in zip(panel.names, itertools.cycle(colours)):
        width = (1.8 if name == TOTAL else 1.2) / (1 if alone else 2)
        for log in logs:
            x, y = log.curve(name)
            if smooth and alone:
                axes.plot(x, y, color=colour, alpha=FAINT, linewidth=width / 2)
            axes.plot(x, running_median(y) if smooth else y, color=colour, linewidth=width,
                      marker='o' if len(x) < FEW else None, markersize=3,
                      clip_on=panel.logarithmic, zorder=3)
        handles.append(Line2D([], [], color=colour, linewidth=1.8, label=LABELS.get(name, name)))
    if smooth and alone:
        handles.append(Line2D([], [], color='black', alpha=FAINT, label='as logged'))
    if smooth:
        handles.append(Line2D([], [], color='black', label='running median'))
    if panel.names[0] in LABELS:
        axes.legend(handles=handles, loc='upper left', bbox_to_anchor=(1.01, 1), frameon=False,
                    fontsize='small')
    axes.set_ylabel(panel.label)
    if not panel.logarithmic:
        axes.set_ylim(0, max(1, axes.get_ylim()[1]))
    elif np.isfinite(axes.dataLim.minposy):  # something is above 0
        _make_logarithmic(axes)
    style(axes)
    axes.grid(axis='x', alpha=0.3)


def running_median(values: np.ndarray) -> np.ndarray:
    """Return the median of the 2 % of a curve around each of its points.

    Args:
        values: (points,).

    Returns:
        (points,). At the ends, the curve is continued by its mirror image.
    """
    half = len(values) // 100
    if not half:
        return values
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(values, half, mode='reflect'), 2 * half + 1)
    return np.median(windows, axis=1)


def _make_logarithmic(axes: Axes) -> None:
    """Show at most four decades, labelled at 1, 10, ... and, if these are few, in between."""
    axes.set_yscale('log', nonpositive='mask')
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom=max(bottom, top / 1e4))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, ) if top / bottom > 100 else (1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _label_both_sides(first: Axes, last: Axes, epoch_length: float) -> None:
    """Label iterations below the last axes, and epochs above the first."""
    last.set_xlabel('iteration')
    last.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
    last.set_xlim(left=0)
    above = first.secondary_xaxis('top', functions=(
        lambda iteration: iteration / epoch_length, lambda epoch: epoch * epoch_length))
    above.set_xlabel('epoch')
    above.xaxis.set_major_locator(MaxNLocator(12, integer=True))
