"""Draw ground truth and predictions of a detector with MMDetection's visualizer."""
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer

from ..validate.config import ConfigError

GAP = 8  # pixels between ground truth and predictions


def draw_predictions(image: np.ndarray, sample: DetDataSample, meta: dict, threshold: float,
                     numbered: bool = False) -> np.ndarray:
    """Draw boxes, masks, classes and scores over an image, next to the ground truth if known.

    Args:
        image: (H, W, 3) uint8, RGB.
        sample: predictions with or without masks, best first if ``numbered``. Its
            ``gt_instances`` are drawn on the left if their boxes were loaded.
        meta: 'classes' of the data set, and their colours in 'palette'.
        threshold: lowest score of the predictions that are drawn.
        numbered: whether to put the number of a prediction before its class.

    Returns:
        (H, W, 3) uint8, RGB; with ground truth, two of them side by side with a gap.
    """
    visualizer = DetLocalVisualizer()
    palette = meta.get('palette')
    if isinstance(palette, list | tuple) and len(palette) < len(meta['classes']):
        palette = 'random'  # the data set's own palette is for its own classes
    visualizer.dataset_meta = {**meta, 'palette': palette}
    sample = sample.clone()
    if numbered:
        labels = sample.pred_instances.labels.tolist()
        sample.pred_instances.label_names = [
            f'{number} {meta["classes"][label]}' for number, label in enumerate(labels)]
    backwards = torch.arange(len(sample.pred_instances)).flip(0)
    sample.pred_instances = sample.pred_instances[backwards]  # the best is drawn over the others
    parts = []
    for truth in [True, False] if knows_truth(sample) else [False]:
        visualizer.add_datasample('', image, sample, draw_gt=truth, draw_pred=not truth,
                                  pred_score_thr=threshold)
        parts += [visualizer.get_image(), np.full((len(image), GAP, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def knows_truth(sample: DetDataSample) -> bool:
    """Return whether ground truth was loaded with an image, even if it has no objects."""
    return 'gt_instances' in sample and 'bboxes' in sample.gt_instances


def read_image(path: Path) -> np.ndarray:
    """Return an image as (H, W, 3) uint8, RGB.

    Raises:
        ConfigError: The file does not exist, is not an image or is damaged.
    """
    if not path.is_file():
        raise ConfigError(f'{path} does not exist: give another image, or put it there')
    image = mmcv.imread(path) if path.stat().st_size else None
    if image is None:
        raise ConfigError(f'{path} ({path.stat().st_size} bytes) is damaged or not an image: give '
                          'another')
    return np.ascontiguousarray(image[..., ::-1])


def encode(image: np.ndarray) -> bytes:
    """Return an (H, W, 3) uint8 RGB image as a PNG."""
    return cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
