"""Whether the files of a data set in COCO's format hold what a config expects of them."""
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import ConfigDict

FULLY_READ = 100_000_000  # bytes; of larger files only the ends are looked at
IMAGES_LOOKED_FOR = 100


def read_annotations(path: Path) -> dict:
    """The content of COCO's annotation file, with lists 'images' and 'categories'.

    Raises:
        ValueError: it cannot be read, or is none of COCO's format.
    """
    try:
        content = json.loads(path.read_text())
        for key, names in (('images', ('id', 'file_name')), ('categories', ('id', 'name'))):
            for name in names:
                for entry in content[key]:
                    entry[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of COCO's annotations, or damaged: {error!r}. "
                         'Write or download it again') from error
    return content


def dataset_classes(dataset: ConfigDict) -> list[str]:
    """The names of the classes of a data set's config."""
    return list(dataset_meta(dataset)['classes'])


def dataset_meta(dataset: ConfigDict) -> dict:
    """What a data set's config tells of its classes: 'classes' and 'palette', their colours."""
    while 'dataset' in dataset or 'datasets' in dataset:  # a wrapper, such as ConcatDataset
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    return dict(palette='random') | DATASETS.get(dataset.type).METAINFO | {
        key.lower(): value for key, value in (dataset.get('metainfo') or {}).items() if value}


def coco_problems(dataset: ConfigDict, trains: bool) -> Iterator[str]:
    """What is wrong with a data set that is read as ``mmdet.CocoDataset`` does it.

    Args:
        dataset: its config; nothing is said about data sets of other formats or on other machines.
        trains: whether objects are needed.
    """
    kind = DATASETS.get(dataset.type) if isinstance(dataset.get('type'), str) else None
    if (kind is None or getattr(kind, 'load_data_list', None) is not CocoDataset.load_data_list
            or dataset.get('backend_args')):
        return
    root = dataset.get('data_root') or ''
    path = Path(os.path.join(root, dataset.ann_file))
    if path.is_file() and path.stat().st_size > FULLY_READ:
        if not _has_both_ends(path):
            yield f'{path} is damaged: it ends in the middle. Download it again'
        return
    try:
        content = read_annotations(path)
    except ValueError as error:
        yield str(error)
        return
    yield from _content_problems(path, content, dataset, trains)
    images = Path(os.path.join(root, (dataset.get('data_prefix') or {}).get('img', '')))
    yield from _image_problems(path, content, images)


def _has_both_ends(path: Path) -> bool:
    with path.open('rb') as file:
        start = file.read(64)
        file.seek(-64, os.SEEK_END)
        return start.lstrip()[:1] == b'{' and file.read().rstrip()[-1:] == b'}'


def _content_problems(path: Path, content: dict, dataset: ConfigDict,
                      trains: bool) -> Iterator[str]:
    objects = content.get('annotations') or []
    if not content['images'] or (trains and not objects):
        yield (f'{path} has {len(content["images"])} images and {len(objects)} objects: give the '
               'annotations of a data set that has some')
        return
    classes, names = dataset_classes(dataset), [entry['name'] for entry in content['categories']]
    if not set(classes) & set(names):
        yield (f'{path} has none of the {len(classes)} classes of its data set '
               f'({_listed(classes)}): its categories are {_listed(names)}. Name these in the '
               "data set's metainfo=dict(classes=(...)), and their number in the heads' "
               'num_classes')


def _image_problems(path: Path, content: dict, images: Path) -> Iterator[str]:
    for image in islice(content['images'], IMAGES_LOOKED_FOR):
        file = images / image['file_name']
        if not file.is_file():
            yield (f'{path} lists {image["file_name"]}, and {file} does not exist: complete the '
                   "images, or say where they are by the data set's data_prefix")
            return
    if content['images'] and _is_damaged(first := images / content['images'][0]['file_name']):
        yield (f'{first} ({first.stat().st_size} bytes) is no image, or damaged: download the '
               'images again')


def _is_damaged(image: Path) -> bool:
    """Whether a file of these names is not what they say: empty, a pointer to it, an error page."""
    return image.suffix.lower() in ('.jpg', '.jpeg', '.png') and cv2.imread(str(image)) is None


def _listed(names: list[str], most: int = 3) -> str:
    return ', '.join(map(str, names[:most])) + (', ...' if len(names) > most else '')
