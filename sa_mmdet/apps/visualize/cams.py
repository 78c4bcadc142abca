"""Grad-CAM of one or two detectors, side by side."""
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..plots import COLOURS, png
from .grad_cam import Target, box_target, class_target
from .heat_maps import colour_bar, overlay, show_image
from .pictures import shown_classes
from .predictions import draw_predictions

MOST_TARGETS = 2
COLUMN = 4.  # inches


def find_targets(model: nn.Module, sample: DetDataSample, threshold: float,
                 labels: list[int] | None = None,
                 boxes: list[int] | None = None) -> tuple[list[Target], list[str]]:
    """Return the scores to explain: of classes, of detections, or of the two best classes.

    Args:
        model: the detector.
        sample: its detections in an image, best first.
        threshold: the score from which a detection counts.
        labels: of classes; one that is repeated counts once.
        boxes: numbers of detections, from 0; one that is repeated counts once.

    Returns:
        The targets that there are, and a sentence for each that there is not.
    """
    names, found = model.dataset_meta['classes'], sample.pred_instances
    if boxes is not None:
        boxes = list(dict.fromkeys(boxes))
        there = [number for number in boxes if number < len(found)]
        lacking = [f'there is no detection {number}: {len(found)} in all, numbered from 0'
                   for number in boxes if number >= len(found)]
        return [box_target(found.bboxes[number], found.labels[number].item(),
                           f'{number} {names[found.labels[number]]}')
                for number in there], lacking
    shown = shown_classes(sample, threshold)
    wanted = shown[:MOST_TARGETS] if labels is None else list(dict.fromkeys(labels))
    lacking = [f'no {names[label]} is detected with a score of at least {threshold}'
               for label in wanted if label not in shown]
    if not wanted:
        lacking = [f'nothing is detected with a score of at least {threshold}']
    return [class_target(label, names[label], threshold)
            for label in wanted if label in shown], lacking


def marked(sample: DetDataSample, target: Target) -> InstanceData:
    """Return the detections whose score a target is."""
    found = sample.pred_instances
    return found[target.choose(found)]


def draw_cams(image: np.ndarray, target: Target, meta: dict,
              cams: dict[str, tuple[InstanceData, Tensor | None]], layer: str) -> bytes:
    """Return the detections, and for each model where their score comes from, as a PNG.

    Args:
        image: (H, W, 3) uint8, RGB.
        target: what is explained.
        meta: the data set's classes and their colours.
        cams: by model, the detections explained and their map, (H, W); None where it has no such
            detection.
        layer: the name of the layer.
    """
    height, width = image.shape[:2]
    columns = len(cams) + 1
    figure = Figure(figsize=(COLUMN * columns + 0.8, COLUMN * height / width + 0.6),
                    layout='constrained')
    panels = figure.subplots(1, columns)
    first = next(iter(cams.values()))[0]
    show_image(panels[0], _with_detections(image, first, meta))
    panels[0].set_title(f'score of: {target.name}', fontsize='medium')
    for axes, (name, (found, cam)) in zip(panels[1:], cams.items(), strict=True):
        _draw_cam(axes, image, found, cam)
        axes.set_title(f'{name}\n{_caption(found, cam)}', fontsize='small')
    colour_bar(panels, Normalize(0, 1), "share of the map's maximum", shrink=0.8)
    figure.suptitle(f'Grad-CAM at {layer}', x=0.01, ha='left', fontsize='medium')
    return png(figure)


def _with_detections(image: np.ndarray, found: InstanceData, meta: dict) -> np.ndarray:
    return draw_predictions(image, DetDataSample(pred_instances=found), meta, threshold=0.)


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
        for colour, width in (('black', 3.5), (COLOURS['sky blue'], 1.5)):  # seen on any ground
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False,
                                     edgecolor=colour, linewidth=width))
