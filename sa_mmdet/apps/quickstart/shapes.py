"""A small instance segmentation data set of drawn shapes, in COCO's format and layout."""
import json
import shutil
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('circle', 'square', 'triangle')
MAX_TILT = np.pi / 9
PLACEMENT_TRIES = 20


def _outline(name: str, radius: float, angle: float) -> np.ndarray:
    """Corners (K, 2) of a shape around the origin that fits a circle of ``radius`` pixels."""
    corners = {'circle': 32, 'square': 4, 'triangle': 3}[name]
    upright = np.pi / 2 + np.pi / corners  # an edge below, as on a table
    turns = angle + upright + 2 * np.pi * np.arange(corners) / corners
    return radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)


def _draw_image(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple]]:
    """Return an image (size, size, 3), uint8, and its shapes: (label, outline (K, 2) in pixels)."""
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
        outline = centre + _outline(CLASSES[label], radius, rng.uniform(-MAX_TILT, MAX_TILT))
        cv2.fillPoly(image, [outline.round().astype(np.int32)], rng.uniform(0, 255, 3).tolist())
        shapes.append((label, outline))
    return image.clip(0, 255).astype(np.uint8), shapes


def _annotation(label: int, outline: np.ndarray) -> dict:
    low, high = outline.min(0), outline.max(0)
    return dict(
        category_id=label + 1,
        bbox=[*low.round(2).tolist(), *(high - low).round(2).tolist()],
        area=float(cv2.contourArea(outline.astype(np.float32))),
        segmentation=[outline.round(2).flatten().tolist()],
        iscrowd=0)


def _write_split(root: Path, split: str, count: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (root / split).mkdir()
    images, annotations = [], []
    for image_id in range(1, count + 1):
        image, shapes = _draw_image(rng, size)
        file_name = f'{image_id:06d}.png'
        cv2.imwrite(str(root / split / file_name), image)
        images.append(dict(id=image_id, file_name=file_name, width=size, height=size))
        for shape in shapes:
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image_id, **_annotation(*shape)))
    content = dict(
        info=dict(description='drawn shapes'), images=images, annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)])
    (root / 'annotations' / f'{split}.json').write_text(json.dumps(content))


def generate_shapes(root: str | Path, train: int = 480, val: int = 100, size: int = 256,
                    seed: int = 0) -> None:
    """Write the data set, unless it is already there with the same settings.

    Layout: ``annotations/{train,val}.json``, ``train/*.png``, ``val/*.png``. The same settings
    give the same files; an interrupted call leaves nothing under ``root``.

    Args:
        root: folder of the data set.
        train, val: numbers of images.
        size: height and width of an image in pixels.
        seed: of the random shapes; the two splits differ.

    Raises:
        FileExistsError: ``root`` holds something else.
    """
    root = Path(root)
    settings = dict(train=train, val=val, size=size, seed=seed)
    settings_file = root / 'settings.json'
    if settings_file.is_file() and json.loads(settings_file.read_text()) == settings:
        return
    if root.exists():
        raise FileExistsError(
            f'{root} exists and is not the shapes data set of {settings}: remove it, or choose '
            'another folder')
    partial = root.with_name(f'{root.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    (partial / 'annotations').mkdir(parents=True)
    _write_split(partial, 'train', train, size, seed=2 * seed)
    _write_split(partial, 'val', val, size, seed=2 * seed + 1)
    (partial / 'settings.json').write_text(json.dumps(settings))
    partial.rename(root)
