"""The chart of the study."""
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..paper.charts import KIND_COLOURS
from ..plots import COLOURS, png, style
from .runs import CONTINUED, FROM_SCRATCH

MARKERS = {'bbox': 'o', 'segm': 's'}
CURVE_COLOURS = dict(zip(CONTINUED, map(COLOURS.get, ('grey', 'vermilion', 'blue')), strict=True))


def draw_study(study) -> bytes:
    """Draw a ``Study`` as a PNG.

    The upper panels show the differences from the network without attention: every seed, and the
    mean with its 95 % interval. The lower panel shows the box AP by epoch of the networks that
    continue the plain one.
    """
    figure = Figure(figsize=(11, 8), layout='constrained')
    axes = figure.subplot_mosaic([['scratch', 'scratch', 'continued'], ['curve'] * 3])
    _draw_differences(axes['scratch'], study, FROM_SCRATCH, 'from scratch')
    _draw_differences(axes['continued'], study, CONTINUED, 'continued from the plain network')
    _draw_curves(axes['curve'], study)
    return png(figure)


def _draw_differences(axes: Axes, study, rows: tuple, title: str) -> None:
    baseline, *rows = rows
    for position, row in enumerate(rows):
        for offset, (task, marker) in zip((-0.15, 0.15), MARKERS.items(), strict=True):
            difference = study.difference(row, baseline, task)
            if difference is None:
                continue
            x, colour = position + offset, KIND_COLOURS[row.attention]
            for of_seed in difference.by_seed.values():
                axes.plot(x + 0.08, of_seed, '.', color=colour, alpha=0.4)
            axes.errorbar(x, difference.mean, yerr=difference.margin, marker=marker, color=colour,
                          capsize=3)
    for task, marker in MARKERS.items():
        axes.plot([], [], marker, color='black', label={'bbox': 'box', 'segm': 'mask'}[task])
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_xticks(range(len(rows)), [row.label.replace(', ', ',\n') for row in rows])
    axes.set_ylabel(f'AP minus {baseline.label} (points)')
    axes.set_title(title, loc='left')
    axes.legend(frameon=False, loc='best', fontsize='small')
    axes.set_xlim(-0.5, len(rows) - 0.5)
    style(axes)


def _draw_curves(axes: Axes, study) -> None:
    for row in CONTINUED:
        curve = study.curve(row, 'bbox')
        if curve:
            axes.errorbar(list(curve), [point.mean for point in curve.values()],
                          yerr=[point.std or 0 for point in curve.values()], capsize=3,
                          marker='o', label=row.label, color=CURVE_COLOURS[row])
    axes.set_xlabel('epochs of continued training')
    axes.set_ylabel('box AP (%), mean and\nstandard deviation')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc='lower right')
    style(axes)
