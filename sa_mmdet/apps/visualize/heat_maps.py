"""Heat maps over images, as parts of a figure."""
import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import CenteredNorm, Normalize
from torch import Tensor

from .pictures import visible_shape

# Both work for colour-blind readers: from dark to bright, and from purple to orange.
SEQUENTIAL, DIVERGING = 'inferno', 'PuOr_r'
OPACITY = 0.6


def overlay(image: np.ndarray, values: Tensor, norm: Normalize,
            width: int | None = None) -> np.ndarray:
    """Blend a map with a grey image, in the colours that fit the norm.

    Args:
        image: (H, W, 3) uint8, RGB.
        values: (h, w), covering the whole image and interpolated in between.
        norm: maps values to colours. A ``CenteredNorm`` has a middle, which is white.
        width: width of the result (default: the image's).

    Returns:
        (H, W, 3) uint8, RGB, scaled to ``width``.
    """
    size = width or image.shape[1], round(image.shape[0] * (width or image.shape[1])
                                          / image.shape[1])
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
    enlarged = cv2.resize(values.numpy(), size, interpolation=cv2.INTER_LINEAR)
    colours = colormaps[_colours(norm)](norm(enlarged), bytes=True)[..., :3]
    return (OPACITY * colours + (1 - OPACITY) * grey[..., None]).astype(np.uint8)


def show_image(axes: Axes, image: np.ndarray) -> None:
    """Draw an image, (H, W, 3) uint8, RGB, without ticks."""
    axes.imshow(image)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def colour_bar(axes, norm: Normalize, label: str, **options) -> Colorbar:
    """Draw and return a bar with the colours of ``overlay`` next to the axes."""
    figure = np.ravel(axes)[0].figure
    return figure.colorbar(ScalarMappable(norm, _colours(norm)), ax=axes, label=label,
                           alpha=OPACITY, fraction=0.03, pad=0.01, **options)


def _colours(norm: Normalize) -> str:
    return DIVERGING if isinstance(norm, CenteredNorm) else SEQUENTIAL


def without_padding(values: Tensor, sample) -> Tensor:
    """Cut off the part of (..., h, w) that covers the padding of the detector's input.

    Args:
        sample: data sample with its shapes.
    """
    height, width = values.shape[-2:]
    (rows, columns), (all_rows, all_columns) = visible_shape(sample), sample.batch_input_shape
    return values[..., :max(1, round(height * rows / all_rows)),
                  :max(1, round(width * columns / all_columns))]
