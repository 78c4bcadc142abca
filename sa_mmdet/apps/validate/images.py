"""Check that images exist, can be read, and have the size that their annotations give."""
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SUFFIXES = ('.jpg', '.jpeg', '.png')
ORIENTATION = 0x0112  # in EXIF
TURNED = (5, 6, 7, 8)  # by a quarter; OpenCV, and so MMDetection, turns the image upright


def absent_images(names: Iterable[str], folder: Path) -> list[str]:
    """Return the images that are missing from a folder; every subfolder is listed once."""
    present, absent = {}, []
    for name in names:
        place = folder / os.path.dirname(name)
        if place not in present:
            present[place] = set(os.listdir(place)) if place.is_dir() else set()
        if os.path.basename(name) not in present[place]:
            absent.append(name)
    return absent


def damage(images: Iterable[Path]) -> str | None:
    """Return a message if a file is not an image (empty, a pointer, an error page, ...), or None.

    The first file is read to its end. For the others, only the header is read if they have one.
    """
    for number, image in enumerate(images):
        looks_whole = number and header(image) is not None
        if image.suffix.lower() in SUFFIXES and not looks_whole and _decoded(image) is None:
            size = image.stat().st_size if image.exists() else 0  # a broken link
            return (f'{image} ({size} bytes) is damaged or not an image: copy or download the '
                    'images again')
    return None


def header(image: Path) -> tuple[int, int, int] | None:
    """Return width, height and EXIF orientation from a file's header; None if it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about very large images
            with Image.open(image) as opened:
                return *opened.size, opened.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's errors have many types
        return None


def size_as_read(image: Path, expected: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of an image as MMDetection reads it.

    Args:
        image: the file; decoded only if the header does not already show the expected size.
        expected: width and height; returned if the image cannot be read.
    """
    expected = tuple(expected)
    if header(image) == (*expected, 1):
        return expected
    decoded = _decoded(image)
    return expected if decoded is None else decoded.shape[1::-1]


def is_turned(image: Path) -> bool:
    """Return whether an image's EXIF orientation turns it by a quarter."""
    return (header(image) or (0, 0, 1))[2] in TURNED


def _decoded(image: Path) -> np.ndarray | None:
    try:
        return cv2.imread(str(image))
    except cv2.error:  # larger than OpenCV can read
        return None
