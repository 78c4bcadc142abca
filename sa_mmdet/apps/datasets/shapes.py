"""Draw plain shapes that do not touch, for the quickstart: three classes, by outline."""
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from .coco_folder import Drawn

CORNERS = {'circle': 32, 'square': 4, 'triangle': 3}
CLASSES = tuple(CORNERS)
MAX_TILT = np.pi / 9
PLACEMENT_TRIES = 20


def generate_shapes(root: str | Path, train: int = 480, val: int = 100, size: int = 256,
                    seed: int = 0) -> None:
    """Write the data set, unless it is already there with the same settings.

    Args:
        root: the folder of the data set; ``Drawn.write`` gives its layout.
        train, val: numbers of images.
        size: height and width of an image in pixels.
        seed: the random seed; the two splits differ.

    Raises:
        FileExistsError: ``root`` holds something else, or lacks a file.
    """
    settings = dict(train=train, val=val, size=size, seed=seed)
    Drawn('drawn shapes', CLASSES, partial(_draw, size=size), settings).write(Path(root))


def _draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[dict]]:
    """Return an image (size, size, 3), uint8, and its shapes as COCO's annotations."""
    image = np.full((size, size, 3), rng.uniform(0, 255, 3))
    image += rng.normal(0, 12, image.shape)
    placed, shapes = [], []
    for _ in range(rng.integers(2, 6)):
        for _ in range(PLACEMENT_TRIES):
            radius = rng.uniform(size / 10, size / 4)
            centre = rng.uniform(radius + 1, size - radius - 1, 2)
            if all(np.hypot(*(centre - other)) >= radius + r for other, r in placed):
                break
        else:
            continue
        placed.append((centre, radius))
        label = int(rng.integers(len(CLASSES)))
        tilt = rng.uniform(-MAX_TILT, MAX_TILT)
        outline = centre + radius * upright(CORNERS[CLASSES[label]], tilt)
        cv2.fillPoly(image, [outline.round().astype(np.int32)], rng.uniform(0, 255, 3).tolist())
        shapes.append(_annotation(label, outline))
    return image.clip(0, 255).astype(np.uint8), shapes


def upright(corners: int, tilt: float) -> np.ndarray:
    """Return the corners (corners, 2) of a regular polygon in the unit circle.

    It stands on an edge if ``tilt``, in radians, is 0.
    """
    below = np.pi / 2 + np.pi / corners
    turns = tilt + below + 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(turns), np.sin(turns)], axis=1)


def _annotation(label: int, outline: np.ndarray) -> dict:
    low, high = outline.min(0), outline.max(0)
    return dict(
        category_id=label + 1,
        bbox=[*low.round(2).tolist(), *(high - low).round(2).tolist()],
        area=float(cv2.contourArea(outline.astype(np.float32))),
        segmentation=[outline.round(2).flatten().tolist()])
