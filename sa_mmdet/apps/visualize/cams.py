"""Grad-CAM of one or two detectors, side by side."""
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from ..plots import COLOURS, png
from .grad_cam import Target
from .heat_maps import colour_bar, overlay, show_image
from .predictions import draw_predictions

COLUMN = 4.  # inches


def draw_cams(image: np.ndarray, target: Target, meta: dict,
              cams: dict[str, tuple[InstanceData, Tensor | None]], layer: str) -> bytes:
    """Draw the detections, and for each model where their score comes from, as a PNG.

    Args:
        image: (H, W, 3) uint8, RGB.
        target: the score to explain.
        meta: the data set's classes and their colours.
        cams: for each model, the explained detections and their map, (H, W); the map is None if
            the model has no such detection.
        layer: name of the layer.
    """
    height, width = image.shape[:2]
    columns = len(cams) + 1
    figure = Figure(figsize=(COLUMN * columns + 0.8, COLUMN * height / width + 0.6),
                    layout='constrained')
    panels = figure.subplots(1, columns)
    explained = DetDataSample(pred_instances=next(iter(cams.values()))[0])
    show_image(panels[0], draw_predictions(image, explained, meta, threshold=0.))
    panels[0].set_title(f'score of: {target.name}', fontsize='medium')
    for axes, (name, (found, cam)) in zip(panels[1:], cams.items(), strict=True):
        _draw_cam(axes, image, found, cam)
        axes.set_title(f'{name}\n{_caption(found, cam)}', fontsize='small')
    colour_bar(panels, Normalize(0, 1), "share of the map's maximum", shrink=0.8)
    figure.suptitle(f'Grad-CAM at {layer}', x=0.01, ha='left', fontsize='medium')
    return png(figure)


def _caption(found: InstanceData, cam: Tensor | None) -> str:
    if cam is None:
        return 'not detected'
    scores = f'score {found.scores.sum():.2f}'
    scores += f' of {len(found)} detections' if len(found) > 1 else ''
    return f'{scores}, maximum {cam.max():.2g}' if cam.max() > 0 else (
        f'{scores}, nothing at this layer raises it')


def _draw_cam(axes: Axes, image: np.ndarray, found: InstanceData, cam: Tensor | None) -> None:
    speaks = cam is not None and cam.max() > 0
    show_image(axes, overlay(image, cam / cam.max(), Normalize(0, 1)) if speaks else image)
    for left, top, right, bottom in found.bboxes.tolist():
        for colour, width in (('black', 3.5), (COLOURS['sky blue'], 1.5)):  # visible on any image
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False,
                                     edgecolor=colour, linewidth=width))
