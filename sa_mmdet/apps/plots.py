"""What the project's figures share: their colours, their axes and their format."""
import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's, which the colour-blind tell apart, but black; and a grey
COLOURS = {
    'orange': '#E69F00', 'sky blue': '#56B4E9', 'green': '#009E73', 'yellow': '#F0E442',
    'blue': '#0072B2', 'vermilion': '#D55E00', 'purple': '#CC79A7', 'grey': '#999999',
}


DPI = 120


def style(axes: Axes) -> None:
    """Faint horizontal lines behind the data, and no frame at the top and the right."""
    axes.grid(axis='y', alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)


def png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file, ``DPI`` pixels an inch."""
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format='png')
    return file.getvalue()
