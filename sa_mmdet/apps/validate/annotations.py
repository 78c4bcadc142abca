"""Read COCO annotation files, each one once."""
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

from mmdet.datasets import CocoDataset

Id = int | float | str


@dataclass(frozen=True)
class Annotations:
    """The content of a COCO annotation file.

    Attributes:
        images: file name, width and height of each image, by id; a size may be None.
        categories: id and name of each category, in the order of the file.
        objects: the number of objects.
        annotated: for each category, the ids of the images with objects.
        repeated: ids that different images, or several objects, share; under 'image', 'object'.
        unreadable: for each reason why MMDetection fails on images or objects, how many there are
            and the file name of the first image.
        found: for each kind and category, the image ids of its objects. Kinds as MMDetection
            reads objects: 'learned', 'crowd', 'no mask'. Kinds for COCO's evaluation: 'evaluated';
            'no id', 'no iscrowd', 'no area', 'no bbox' and 'no segmentation' for what it needs but
            is missing; 'id 0', which it treats as no match; 'small', below a pixel.
        unlisted: the number of objects whose image the file does not list.
        uncategorised: the number of objects whose category the file does not list.
        sha256: the hash of the file.
    """

    images: dict[Id, tuple[str, int | None, int | None]]
    categories: list[tuple[Id, str]]
    objects: int
    repeated: dict[str, list[Id]]
    unlisted: int
    uncategorised: int
    sha256: str
    annotated: dict[str, set[Id]] = field(default_factory=lambda: defaultdict(set))
    unreadable: dict[str, list] = field(default_factory=dict)
    found: dict[tuple[str, str], list[Id]] = field(default_factory=lambda: defaultdict(list))


def read_annotations(path: Path) -> Annotations:
    """Read a COCO annotation file; the result is cached until the file changes.

    Raises:
        ValueError: the file cannot be read, or is not in COCO's format.
    """
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'{path} is damaged or not a COCO annotation file: {error!r}. '
                         'Write or download it again') from error


@lru_cache(maxsize=8)
def _read(path: Path, *_) -> Annotations:
    data = path.read_bytes()
    content = json.loads(data.decode())
    listed, objects = content['images'], content.get('annotations') or []
    categories = [(category['id'], category['name']) for category in content['categories']]
    by_image = defaultdict(list)
    for entry in objects:
        by_image[entry['image_id']].append(entry)
    images = {image['id']: image for image in listed}
    names = dict(categories)
    annotations = Annotations(
        images={id_: (os.fspath(image['file_name']), image.get('width'), image.get('height'))
                for id_, image in images.items()},
        categories=categories, objects=len(objects), sha256=hashlib.sha256(data).hexdigest(),
        repeated=dict(
            image=list({image['id'] for image in listed if image != images[image['id']]}),
            object=_repeated(entry['id'] for entry in objects if entry['image_id'] in images)),
        unlisted=sum(entry['image_id'] not in images for entry in objects),
        uncategorised=sum(entry['category_id'] not in names for entry in objects))
    for image in images.values():
        _note_objects(annotations, image, by_image[image['id']], names)
    return annotations


def _repeated(ids: Iterator[Id]) -> list[Id]:
    return [id_ for id_, times in Counter(ids).items() if times > 1]


def _note_objects(annotations: Annotations, image: dict, objects: list[dict], names: dict) -> None:
    for entry in objects:
        if (category := names.get(entry['category_id'])) is not None:
            annotations.annotated[category].add(image['id'])
            for kind in _evaluation(entry):
                annotations.found[kind, category].append(image['id'])
    for instance in _instances(annotations, image, objects, names):
        kinds = ['crowd' if instance['ignore_flag'] else 'learned']
        mask = instance.get('mask')
        if not (isinstance(mask, dict) or (isinstance(mask, list) and isinstance(mask[0], list))):
            kinds.append('no mask')
        for kind in kinds:
            annotations.found[kind, instance['bbox_label']].append(image['id'])


def _evaluation(entry: dict) -> Iterator[str]:
    """Yield whether COCO's evaluation counts an object, and what the object lacks for it."""
    box, area, id_ = entry.get('bbox'), entry.get('area'), entry['id']
    if not entry.get('iscrowd'):
        yield 'evaluated'
    if entry.get('iscrowd') is None:
        yield 'no iscrowd'
    if not isinstance(area, int | float):
        yield 'no area'
    if not (isinstance(box, list) and len(box) == 4
            and all(isinstance(number, int | float) for number in box)):
        yield 'no bbox'
    elif min(box[2:]) < 1:
        yield 'small'
    if not has_outline(entry):
        yield 'no segmentation'
    if id_ == 0:
        yield 'id 0'
    try:
        float(id_)  # COCOeval stores it in an array
    except (TypeError, ValueError, OverflowError):
        yield 'no id'


def has_outline(entry: dict) -> bool:
    """Return whether pycocotools can make a mask from an object's segmentation."""
    outline = entry.get('segmentation')
    if isinstance(outline, dict):
        return 'counts' in outline
    return (isinstance(outline, list) and bool(outline) and isinstance(outline[0], list)
            and len(outline[0]) > 4)


def _instances(annotations: Annotations, image: dict, objects: list[dict], names: dict
               ) -> list[dict]:
    """Return the objects of an image as MMDetection reads them, with names as labels."""
    dataset = SimpleNamespace(data_prefix=dict(img=''), seg_map_suffix='', return_classes=False,
                              cat_ids=names, cat2label=names)

    def parsed(entries: list[dict]) -> list[dict]:
        information = dict(raw_img_info=dict(image, img_id=image['id']), raw_ann_info=entries)
        return CocoDataset.parse_data_info(dataset, information)['instances']

    try:
        return parsed(objects)
    except Exception:  # its type depends on what an object lacks
        instances = []
    for what, entries in [('images', []), *(('objects', [entry]) for entry in objects)]:
        try:
            instances += parsed(entries)
        except Exception as error:
            reason = (f'{what} without {error.args[0]}' if isinstance(error, KeyError) else
                      f'{what} that cannot be read ({error})')
            annotations.unreadable.setdefault(reason, [0, image['file_name']])[0] += 1
            if what == 'images':
                return []
    return instances
