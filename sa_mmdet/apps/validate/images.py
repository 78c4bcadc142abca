"""Whether images are there, can be read, and have the size that their annotations are for."""
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
from PIL import Image

SUFFIXES = ('.jpg', '.jpeg', '.png')
ORIENTATION = 0x0112  # in EXIF
TURNED = (5, 6, 7, 8)  # by a quarter; OpenCV, and with it MMDetection, turns the image upright


def absent_images(names: Iterable[str], folder: Path) -> list[str]:
    """Return the images that are not below a folder, by one look into each place."""
    present, absent = {}, []
    for name in names:
        place = folder / os.path.dirname(name)
        if place not in present:
            present[place] = set(os.listdir(place)) if place.is_dir() else set()
        if os.path.basename(name) not in present[place]:
            absent.append(name)
    return absent


def damage(images: Iterable[Path]) -> Iterator[str]:
    """Yield which file is empty, a pointer to an image, an error page, ..., the first of them.

    One is read to its end, the beginnings of the others are.
    """
    for number, image in enumerate(images):
        if image.suffix.lower() in SUFFIXES and (not number or header(image) is None) and (
                cv2.imread(str(image)) is None):
            yield (f'{image} ({image.stat().st_size} bytes) is no image, or damaged: copy or '
                   'download the images again')
            return


def header(image: Path) -> tuple[int, int, int] | None:
    """Return width, height and EXIF orientation that a file begins with, None if it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of images that are very large
            with Image.open(image) as opened:
                return *opened.size, opened.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises by what it meets
        return None


def size_as_read(image: Path, expected: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of an image as MMDetection reads it.

    Args:
        image: the file; it is decoded only where its beginning does not tell that it is so.
        expected: width and height; returned where the image cannot be read.
    """
    if header(image) == (*expected, 1):
        return expected
    decoded = cv2.imread(str(image))
    return expected if decoded is None else decoded.shape[1::-1]


def is_turned(image: Path) -> bool:
    """Return whether the EXIF orientation of an image turns it by a quarter."""
    return (header(image) or (0, 0, 1))[2] in TURNED
