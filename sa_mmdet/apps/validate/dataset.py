"""A data set in COCO's format, as a config describes it and MMDetection reads it."""
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import ConfigDict
from mmengine.fileio import list_from_file

from .annotations import Annotations
from .config import class_of


@dataclass(frozen=True)
class Source:
    """A data set that MMDetection's ``CocoDataset`` reads from this machine.

    Attributes:
        config: of the data set.
        path, annotations: the file, and what it lists.
        folder: of the images.
        classes: what the config says: names, or a text that is no file of names.
    """

    config: ConfigDict
    path: Path
    annotations: Annotations
    folder: Path
    classes: list[str] | str

    @property
    def names(self) -> list[str]:
        """Return the classes that have the labels 0, 1, 2, ...

        MMDetection numbers the categories that ``classes`` name, in the order of the file.
        """
        return [name for name in self.annotations.categories if name in self.classes]

    def count(self, kind: str) -> int:
        """Return how many objects of a kind the classes have."""
        return sum(self.annotations.counts[kind, name] for name in set(self.names))

    def example(self, kind: str) -> str:
        """Return the file name of an image with such an object."""
        examples = self.annotations.examples
        return next(examples[kind, name] for name in self.names if (kind, name) in examples)

    def images(self) -> Iterator[tuple]:
        """Yield the images that are read: their ids, with what the file tells of each."""
        images, indices = list(self.annotations.images.items()), self.config.get('indices')
        if isinstance(indices, int):
            yield from images[:indices]
        else:
            yield from images if indices is None else [images[index] for index in indices]


def dataset_meta(dataset: ConfigDict) -> dict:
    """Return what a data set's config tells of its classes: 'classes' and their 'palette'."""
    while 'dataset' in dataset or 'datasets' in dataset:  # a wrapper, such as ConcatDataset
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    meta = dict(palette='random') | class_of(dataset.type, DATASETS).METAINFO | {
        key.lower(): value for key, value in (dataset.get('metainfo') or {}).items() if value}
    return meta | dict(classes=class_names(meta.get('classes')))


def class_names(value: object) -> list[str] | str | None:
    """Return the classes of a data set, as MMEngine reads what its config says of them.

    Args:
        value: ``metainfo.classes``: the names, or the path of a file with a name in each line.

    Returns:
        The names; the text itself where there is no such file; None where nothing is said.
    """
    if isinstance(value, str):
        return list_from_file(value) if Path(value).is_file() else value
    return list(value) if value else None


def dataset_paths(dataset: ConfigDict) -> tuple[Path, Path]:
    """Return the annotation file of a data set and the folder of its images."""
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    return Path(os.path.join(root, dataset.ann_file or '')), Path(
        os.path.join(root, prefix.get('img') or ''))


def is_coco(dataset: ConfigDict) -> bool:
    """Return whether a data set is read as COCO's are, on this machine."""
    kind = class_of(dataset.get('type'), DATASETS)
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    return (all(getattr(kind, name, None) is getattr(CocoDataset, name)
                for name in ('load_data_list', 'parse_data_info', 'COCOAPI'))
            and backend == 'local' and isinstance(dataset.ann_file, str | None)
            and dataset_meta(dataset)['classes'] is not None
            and not any('://' in str(place) for place in (
                dataset.get('data_root'), dataset.ann_file, dataset.get('data_prefix'))))
