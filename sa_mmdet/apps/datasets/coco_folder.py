"""Write a data set in COCO's format and layout, image by image as it is drawn."""
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..validate.annotations import read_annotations
from ..validate.images import absent_images

SETTINGS_FILE = 'settings.json'
SPLITS = ('train', 'val')
# Returns an image (H, W, 3), uint8, BGR, and its objects: COCO annotations without ids.
Draw = Callable[[np.random.Generator], tuple[np.ndarray, list[dict]]]


@dataclass(frozen=True)
class Drawn:
    """A data set of drawn images.

    Attributes:
        description: a text for the annotation files and messages.
        classes: the class names; the category ids are 1, 2, ...
        draw: draws an image.
        settings: what the files depend on: 'train', 'val' (numbers of images), 'seed', and more.
    """

    description: str
    classes: tuple[str, ...]
    draw: Draw
    settings: dict

    def write(self, root: Path) -> None:
        """Write the data set, unless it is already there with the same settings.

        Layout: ``annotations/{train,val}.json``, ``train/*.png``, ``val/*.png``. The same settings
        give the same files. An interrupted call leaves nothing under ``root``.

        Raises:
            FileExistsError: ``root`` holds something else, or lacks a file.
            OSError: an image cannot be written.
        """
        if problem := self.problem(root):
            raise FileExistsError(problem)
        if self.is_in(root):
            return
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f'{root.name}.') as folder:
            partial = Path(folder) / root.name
            (partial / 'annotations').mkdir(parents=True)
            for number, split in enumerate(SPLITS):
                self._write_split(partial, split, seed=2 * self.settings['seed'] + number)
            (partial / SETTINGS_FILE).write_text(json.dumps(self.settings))
            if not self.is_in(root):  # another process may have drawn it meanwhile
                partial.rename(root)

    def is_in(self, root: Path) -> bool:
        """Return whether a folder holds the data set."""
        try:
            return json.loads((root / SETTINGS_FILE).read_text()) == self.settings
        except (OSError, ValueError):
            return False

    def problem(self, root: Path) -> str | None:
        """Return why a folder cannot be used: it holds something else, or lacks a file."""
        if self.is_in(root):
            lost = next(_lost_files(root), None)
            return lost and f'{lost} is missing or damaged: remove {root} to draw it again'
        is_free = not root.exists() or (root.is_dir() and not any(root.iterdir()))
        return None if is_free else (
            f'{root} exists, but is not the data set of {self.description} with {self.settings}: '
            'remove it, or choose another folder')

    def _write_split(self, root: Path, split: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        (root / split).mkdir()
        images, annotations = [], []
        for image_id in range(1, self.settings[split] + 1):
            image, objects = self.draw(rng)
            height, width = image.shape[:2]
            file_name = f'{image_id:06d}.png'
            if not cv2.imwrite(str(root / split / file_name), image):
                raise OSError(f'{root / split / file_name} could not be written: is the disk full?')
            images.append(dict(id=image_id, file_name=file_name, width=width, height=height))
            for annotation in objects:
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=image_id, iscrowd=0, **annotation))
        content = dict(
            info=dict(description=self.description), images=images, annotations=annotations,
            categories=[dict(id=i, name=name) for i, name in enumerate(self.classes, start=1)])
        (root / 'annotations' / f'{split}.json').write_text(json.dumps(content))


def _lost_files(root: Path) -> Iterator[Path]:
    for split in SPLITS:
        annotations = root / 'annotations' / f'{split}.json'
        try:
            names = [name for name, *_ in read_annotations(annotations).images.values()]
        except ValueError:
            yield annotations
        else:
            yield from (root / split / name for name in absent_images(names, root / split))
