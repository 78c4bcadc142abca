"""What a file of COCO's annotations lists, read once."""
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

from mmdet.datasets import CocoDataset


@dataclass(frozen=True)
class Annotations:
    """What a file of COCO's annotations lists.

    Attributes:
        images: file name, width and height of each, by its id; the latter None where not given.
        objects: their number.
        annotated: the ids of the images that have objects.
        categories: their names in the order of the file, which is that of MMDetection's labels.
        twice: ids that more than one image, object or category has, by these words.
        unread: how many images and objects MMDetection stops at, by what they lack, with the file
            name of the first.
        counts: of objects in listed images, by kind and category. As MMDetection reads them:
            'learned', 'crowd', 'no mask'; as COCO's evaluation does: 'evaluated', and without what
            that needs: 'no id', 'no iscrowd', 'no area', 'no bbox', 'no segmentation'.
        examples: the file name of the first image with such an object.
        sha256: of the file.
    """

    images: dict[object, tuple[str, int | None, int | None]]
    objects: int
    annotated: set
    categories: list[str]
    twice: dict[str, list]
    sha256: str
    unread: dict[str, list] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)


def read_annotations(path: Path) -> Annotations:
    """Read a file of COCO's annotations; once, until it changes.

    Raises:
        ValueError: it cannot be read, or is none of COCO's format.
    """
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of COCO's annotations, or damaged: {error!r}. "
                         'Write or download it again') from error


@lru_cache(maxsize=8)
def _read(path: Path, *_) -> Annotations:
    data = path.read_bytes()
    content = json.loads(data)
    listed, objects = content['images'], content.get('annotations') or []
    names = {category['id']: category['name'] for category in content['categories']}
    by_image = defaultdict(list)
    for entry in objects:
        by_image[entry['image_id']].append(entry)
    annotations = Annotations(
        images={image['id']: (os.fspath(image['file_name']), image.get('width'),
                              image.get('height')) for image in listed},
        objects=len(objects), annotated=set(by_image),
        categories=[category['name'] for category in content['categories']],
        twice={what: twice for what, entries in (
            ('image', listed), ('object', objects), ('category', content['categories']))
            if (twice := _twice(entry['id'] for entry in entries))},
        sha256=hashlib.sha256(data).hexdigest())
    for image in listed:
        _count(annotations, image, by_image[image['id']], names)
    return annotations


def _twice(ids: Iterable) -> list:
    return [id_ for id_, times in Counter(ids).items() if times > 1]


def _count(annotations: Annotations, image: dict, objects: list[dict], names: dict) -> None:
    """Count the objects of an image."""
    def note(kind: str, category: str) -> None:
        annotations.counts[kind, category] += 1
        annotations.examples.setdefault((kind, category), image['file_name'])

    for entry in objects:
        if (category := names.get(entry['category_id'])) is not None:
            for kind in _evaluation(entry):
                note(kind, category)
    for instance in _instances(annotations, image, objects, names):
        note('crowd' if instance['ignore_flag'] else 'learned', instance['bbox_label'])
        mask = instance.get('mask')
        if not mask or (not isinstance(mask, dict) and not isinstance(mask[0], list)):
            note('no mask', instance['bbox_label'])


def _evaluation(entry: dict) -> Iterator[str]:
    """Yield that COCO's evaluation counts an object, or what it lacks for that."""
    if not entry.get('iscrowd'):
        yield 'evaluated'
    for key in ('iscrowd', 'area', 'bbox'):
        if entry.get(key) is None:
            yield f'no {key}'
    if not has_outline(entry):
        yield 'no segmentation'
    try:
        float(entry['id'])  # which COCOeval writes into an array
    except (TypeError, ValueError):
        yield 'no id'


def has_outline(entry: dict) -> bool:
    """Return whether pycocotools can make a mask of an object's segmentation."""
    outline = entry.get('segmentation')
    if isinstance(outline, dict):
        return 'counts' in outline
    return bool(outline) and isinstance(outline[0], list) and len(outline[0]) > 4


def _instances(annotations: Annotations, image: dict, objects: list[dict], names: dict
               ) -> list[dict]:
    """Return the objects of an image that MMDetection reads, as it does; their labels are names."""
    dataset = SimpleNamespace(data_prefix=dict(img=''), seg_map_suffix='', return_classes=False,
                              cat_ids=names, cat2label=names)

    def parsed(entries: list[dict]) -> list[dict]:
        information = dict(raw_img_info=dict(image, img_id=image['id']), raw_ann_info=entries)
        return CocoDataset.parse_data_info(dataset, information)['instances']

    try:
        return parsed(objects)
    except Exception:  # by whatever one of them lacks
        instances = []
    for what, entries in [('images', []), *(('objects', [entry]) for entry in objects)]:
        try:
            instances += parsed(entries)
        except Exception as error:
            lacking = error.args[0] if isinstance(error, KeyError) else f'a usable bbox ({error})'
            told = f'{what} without {lacking}'
            annotations.unread.setdefault(told, [0, image['file_name']])[0] += 1
            if what == 'images':
                return []
    return instances
