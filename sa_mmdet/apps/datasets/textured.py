"""Draw textured shapes that overlap, for the study: eight classes, by outline and texture.

Colours carry no information. The background has a texture too, and some images show rings and bars,
which belong to no class.
"""
import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .coco_folder import Drawn
from .shapes import upright

OUTLINES = {'circle': 32, 'square': 4, 'triangle': 3, 'cross': 4}  # and their corners or arms
TEXTURES = ('plain', 'striped')
CLASSES = tuple(f'{texture} {outline}' for outline in OUTLINES for texture in TEXTURES)
BACKGROUNDS = ('plain', 'striped', 'dotted')
DISTRACTORS = ('ring', 'bar')
DISTRACTOR_SHARE = 0.2
GREY = 127.5
SIZE = 256  # of an image; all lengths are in pixels
SMALLEST, LARGEST = 8, 128  # diameter of the circle around an object
VISIBLE = 0.5  # smallest visible share of an annotated object
CONTRAST = (40, 110)  # between a texture's two colours, per channel
NOISE = 5
FAINT = 0.3  # contrast of the background, relative to the shapes'
MAX_TILT = np.pi / 6
VERSION = 1  # raise it if the drawing changes
Y, X = np.mgrid[:SIZE, :SIZE].astype(np.float32)


def textured_shapes(train: int = 2000, val: int = 500, seed: int = 0) -> Drawn:
    """Return the data set; its ``write`` draws it.

    Args:
        train, val: numbers of images.
        seed: the random seed; the two splits differ.
    """
    return Drawn('textured shapes', CLASSES, draw_image, dict(
        train=train, val=val, seed=seed, version=VERSION))


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """Return an image (SIZE, SIZE, 3), uint8, and COCO annotations of its visible shapes."""
    image = _background(rng)
    shapes = []
    for _ in range(rng.integers(2, 6)):
        size = SMALLEST + (LARGEST - SMALLEST) * np.cbrt(rng.random())  # favours large shapes
        kinds = DISTRACTORS if rng.random() < DISTRACTOR_SHARE else tuple(OUTLINES)
        outline = str(rng.choice(kinds))
        texture = str(rng.choice(TEXTURES))
        mask = _mask(rng, outline, size)
        image[mask] = _pattern(rng, texture, period=max(4, size / 3.5))[mask]
        for other, *_ in shapes:
            other &= ~mask
        shapes.append((mask, f'{texture} {outline}', mask.sum()))
    objects = [_annotation(mask, name) for mask, name, whole in shapes
               if name in CLASSES and mask.sum() >= VISIBLE * whole]
    image *= _smooth(rng, 0.6, 1.2)[..., None]
    image += NOISE * rng.standard_normal(image.shape, np.float32)
    return image.clip(0, 255).astype(np.uint8), objects


def _background(rng: np.random.Generator) -> np.ndarray:
    """Return (SIZE, SIZE, 3): two textures that blend into each other."""
    first, second = (_pattern(rng, str(rng.choice(BACKGROUNDS)), period=rng.uniform(6, 40))
                     for _ in range(2))
    share = _smooth(rng, 0, 1)[..., None]
    return GREY + FAINT * (first * share + second * (1 - share) - GREY)


def _smooth(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Return (SIZE, SIZE): values that change slowly."""
    coarse = rng.uniform(low, high, (4, 4)).astype(np.float32)
    return cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def _pattern(rng: np.random.Generator, texture: str, period: float) -> np.ndarray:
    """Return (SIZE, SIZE, 3): a texture of two colours at a random angle; 'plain' has one."""
    first = rng.uniform(0, 255, 3)
    second = first + rng.uniform(*CONTRAST, 3) * np.where(first < 128, 1, -1)
    angle, *shift = rng.uniform(0, 2 * np.pi, 3)
    across, along = (2 * np.pi / period * f(angle) for f in (np.cos, np.sin))
    u = np.cos(across * X + along * Y + shift[0])
    v = np.cos(across * Y - along * X + shift[1])
    shown = {'plain': np.zeros_like(u), 'striped': u > 0, 'dotted': u + v > 0.8}[texture]
    return np.where(shown[..., None], second, first).astype(np.float32)


def _mask(rng: np.random.Generator, outline: str, size: float) -> np.ndarray:
    """Return (SIZE, SIZE), bool: a shape inside a circle of diameter ``size``."""
    radius = size / 2
    centre = rng.uniform(radius, SIZE - radius, 2)
    angle = rng.uniform(-MAX_TILT, MAX_TILT)
    if outline == 'bar':
        turns = 3 * angle + np.array([0.25, np.pi - 0.25, np.pi + 0.25, -0.25])
        border = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    elif outline == 'cross':
        turns = angle + np.pi / 2 * np.arange(4)[:, None] + np.array([-0.3, 0.3, np.pi / 4])
        reach = np.array([1, 1, 0.42])
        border = (reach[..., None] * np.stack([np.cos(turns), np.sin(turns)], -1)).reshape(-1, 2)
    else:
        border = upright(OUTLINES.get(outline, 32), angle)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for hole, value in ((radius, 1), (0.6 * radius, 0))[:2 if outline == 'ring' else 1]:
        cv2.fillPoly(mask, [(centre + hole * border).round().astype(np.int32)], value)
    return mask.astype(bool)


def _annotation(mask: np.ndarray, name: str) -> dict:
    lengths = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return dict(
        category_id=CLASSES.index(name) + 1,
        bbox=coco_mask.toBbox(lengths).tolist(),
        area=float(coco_mask.area(lengths)),
        segmentation=dict(size=lengths['size'], counts=lengths['counts'].decode()))
