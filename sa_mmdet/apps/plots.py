"""Colours, axes and file format of the project's figures."""
import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette for the colour-blind, without black, plus a grey
COLOURS = {
    'orange': '#E69F00', 'sky blue': '#56B4E9', 'green': '#009E73', 'yellow': '#F0E442',
    'blue': '#0072B2', 'vermilion': '#D55E00', 'purple': '#CC79A7', 'grey': '#999999',
}


DPI = 120


def style(axes: Axes) -> None:
    """Draw faint horizontal lines behind the data, and no frame at the top and right."""
    axes.grid(axis='y', alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG bytes, at ``DPI`` pixels per inch."""
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format='png')
    return file.getvalue()
