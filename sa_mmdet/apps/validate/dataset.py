"""A data set in COCO's format, as a config describes it and MMDetection reads it."""
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import ConfigDict
from mmengine.fileio import list_from_file

from .annotations import Annotations, Id
from .config import class_of, dicts_below


@dataclass(frozen=True)
class Source:
    """A data set that MMDetection's ``CocoDataset`` reads from this machine.

    Attributes:
        config: the data set's config.
        path, annotations: the annotation file and its content.
        folder: the image folder.
        classes: the names that the config gives, or a text that is not a file of names.
    """

    config: ConfigDict
    path: Path
    annotations: Annotations
    folder: Path
    classes: list[str] | str

    @cached_property
    def labels(self) -> list[tuple[Id, str]]:
        """Return the ids and names of the categories with the labels 0, 1, 2, ...

        MMDetection numbers the categories in ``classes``, in the order of the file.
        """
        if isinstance(self.classes, str):
            return []
        return [(id_, name) for id_, name in self.annotations.categories if name in self.classes]

    @property
    def names(self) -> list[str]:
        """Return the names of the labels."""
        return [name for _, name in self.labels]

    @cached_property
    def images(self) -> dict[Id, tuple[str, int | None, int | None]]:
        """Return the images that are read, after ``filter_cfg`` and ``indices``.

        They are those that ``CocoDataset.filter_data`` and MMEngine's ``BaseDataset`` keep.
        """
        images, config = self.annotations.images, self.config
        wanted = (not config.get('test_mode') and config.get('filter_cfg')) or {}
        if wanted.get('filter_empty_gt'):
            annotated = set().union(*(self.annotations.annotated[name] for name in self.names))
            images = {id_: image for id_, image in images.items() if id_ in annotated}
        if smallest := wanted.get('min_size'):
            images = {id_: image for id_, image in images.items()
                      if None in image or min(image[1:]) >= smallest}
        indices = config.get('indices')
        if indices is None:
            return images
        ids = list(images)
        if isinstance(indices, int):
            ids = ids[:indices] if indices >= 0 else ids[indices:]
        else:
            ids = [ids[index] for index in indices]
        return {id_: images[id_] for id_ in ids}

    def having(self, kind: str) -> list[Id]:
        """Return the image id of each object of a kind, in the classes and images that are read."""
        found = [self.annotations.found.get((kind, name), []) for name in dict.fromkeys(self.names)]
        return [id_ for ids in found for id_ in ids if id_ in self.images]


def dataset_meta(dataset: ConfigDict) -> dict:
    """Return what a data set's config says of its classes: 'classes' and their 'palette'."""
    while 'dataset' in dataset or 'datasets' in dataset:  # a wrapper, such as ConcatDataset
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    meta = dict(palette='random') | class_of(dataset.type, DATASETS).METAINFO | {
        key: value for key, value in (dataset.get('metainfo') or {}).items() if value}
    return meta | dict(classes=class_names(meta.get('classes')))


def class_names(value: object) -> list[str] | str | None:
    """Return the class names of a data set, as MMEngine reads them from its config.

    Args:
        value: ``metainfo.classes``: the names, or the path of a file with one name per line.

    Returns:
        The names; the text itself if there is no such file; None if the config gives no classes.
    """
    if isinstance(value, str):
        return list_from_file(value) if Path(value).is_file() else value
    return list(value) if value else None


def dataset_paths(dataset: ConfigDict) -> tuple[Path, Path]:
    """Return a data set's annotation file and image folder."""
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    return Path(os.path.join(root, dataset.ann_file or '')), Path(
        os.path.join(root, prefix.get('img') or ''))


def is_coco(dataset: ConfigDict) -> bool:
    """Return whether MMDetection reads a data set as COCO, from this machine."""
    kind = class_of(dataset.get('type'), DATASETS)
    return (all(getattr(kind, name, None) is getattr(CocoDataset, name)
                for name in ('load_data_list', 'parse_data_info', 'COCOAPI'))
            and isinstance(dataset.ann_file, str | None) and is_local(dataset)
            and dataset_meta(dataset)['classes'] is not None)


def is_local(dataset: ConfigDict) -> bool:
    """Return whether the files of a data set are on this machine."""
    places = dataset.get('data_root'), dataset.get('ann_file'), dataset.get('data_prefix')
    return _is_local_backend(dataset) and not any('://' in str(place) for place in places)


def has_local_images(dataset: ConfigDict) -> bool:
    """Return whether the pipeline of a data set loads its images from this machine."""
    return all(map(_is_local_backend, dicts_below(dataset.get('pipeline'))))


def _is_local_backend(config: dict) -> bool:
    return (config.get('backend_args') or {}).get('backend', 'local') in ('local', 'disk')
