"""Whether the data of a detector is there, and is what its config expects of it."""
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict

from .config import datasets_below, listed, loader_problem

WHERE = ('Put COCO, or a link to it, under data/coco of the folder where you start the command, or '
         'say where it is: --data-root of reproduce.py, --cfg-options elsewhere (README, "Data").')
FULLY_READ = 100_000_000  # bytes; of larger files only the ends are looked at
IMAGES_LOOKED_FOR = 100


@dataclass(frozen=True)
class Annotations:
    """What a file of COCO's annotations lists.

    Attributes:
        images: (id, file name) of each.
        objects: their number.
        annotated: the ids of the images that have objects.
        categories: their names.
        sha256: of the file.
    """

    images: list[tuple[int, str]]
    objects: int
    annotated: set[int]
    categories: list[str]
    sha256: str

    @property
    def ids(self) -> set[int]:
        """Return the ids of all images."""
        return {id_ for id_, _ in self.images}


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
    objects = content.get('annotations') or []
    return Annotations(
        images=[(image['id'], os.fspath(image['file_name'])) for image in content['images']],
        objects=len(objects), annotated={entry['image_id'] for entry in objects},
        categories=list({category['id']: category['name']
                         for category in content['categories']}.values()),
        sha256=hashlib.sha256(data).hexdigest())


def dataset_meta(dataset: ConfigDict) -> dict:
    """Return what a data set's config tells of its classes: 'classes' and their 'palette'."""
    while 'dataset' in dataset or 'datasets' in dataset:  # a wrapper, such as ConcatDataset
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    return dict(palette='random') | DATASETS.get(dataset.type).METAINFO | {
        key.lower(): value for key, value in (dataset.get('metainfo') or {}).items() if value}


def dataset_paths(dataset: ConfigDict) -> tuple[Path, Path]:
    """Return the annotation file of a data set and the folder of its images."""
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    return Path(os.path.join(root, dataset.ann_file or '')), Path(
        os.path.join(root, prefix.get('img') or ''))


def coco_problems(config: Config, splits: tuple[str, ...], to_the_end: bool = False
                  ) -> Iterator[str]:
    """Yield what is wrong with the data of a detector, sentences for people.

    Of data sets in other formats than COCO's only the paths are looked for.

    Args:
        config: of a detector.
        splits: the data sets that are read, of 'train', 'val' and 'test'.
        to_the_end: read files of any size, look for every image, and ask for what COCO 2017 has:
            all classes, its ids, and an evaluator of the images that are tested.
    """
    if problem := loader_problem(config, splits[0]):
        yield problem
        return
    datasets = [(split, dataset) for split in splits
                for dataset in datasets_below(config.get(f'{split}_dataloader'))
                if 'ann_file' in dataset]
    if missing := [path for path in dict.fromkeys(_paths(config, splits, datasets))
                   if not path.exists()]:
        lines = '\n'.join(f'  {path.absolute()}' for path in missing)
        yield f'the data set is incomplete; not found:\n{lines}\n{WHERE}'
        return
    for split, dataset in datasets:
        if _is_coco(dataset):
            yield from _dataset_problems(dataset, split == 'train', to_the_end)
        if to_the_end and split != 'train':
            yield from _evaluator_problems(config, split, dataset)


def _paths(config: Config, splits: tuple[str, ...], datasets: list) -> Iterator[Path]:
    """Yield the local files and folders that are read."""
    sources = [os.path.join(dataset.get('data_root') or '', source) for _, dataset in datasets
               for source in (dataset.ann_file, *(dataset.get('data_prefix') or {}).values())
               if source and isinstance(source, str)]
    for split in splits:
        evaluators = config.get(f'{split}_evaluator') or []
        sources += [evaluator.get('ann_file') for evaluator in (
            evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]) if evaluator]
    return (Path(source) for source in sources if source and '://' not in source)


def _is_coco(dataset: ConfigDict) -> bool:
    """Return whether a data set is read as COCO's are, on this machine."""
    kind = DATASETS.get(dataset.type) if isinstance(dataset.get('type'), str) else None
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    return (getattr(kind, 'load_data_list', None) is CocoDataset.load_data_list
            and backend == 'local' and isinstance(dataset.ann_file, str | None)
            and not any('://' in str(place) for place in (
                dataset.get('data_root'), dataset.ann_file, dataset.get('data_prefix'))))


def _dataset_problems(dataset: ConfigDict, trains: bool, to_the_end: bool) -> Iterator[str]:
    path, folder = dataset_paths(dataset)
    if not path.is_file():
        yield f"{path} is not a file: give the data set's ann_file={dataset.ann_file!r} its name"
        return
    if not to_the_end and path.stat().st_size > FULLY_READ:
        if not _has_both_ends(path):
            yield f'{path} is damaged: it ends in the middle. Download it again'
        return
    try:
        annotations = read_annotations(path)
    except ValueError as error:
        yield str(error)
        return
    if not annotations.images or (not annotations.objects and (trains or to_the_end)):
        yield (f'{path} has {len(annotations.images)} images and {annotations.objects} objects: '
               'give the annotations of a data set that has some')
        return
    yield from _class_problems(path, annotations, dataset, to_the_end)
    yield from _image_problems(path, annotations, folder, to_the_end)
    if to_the_end:
        yield from _id_problems(path, annotations)


def _has_both_ends(path: Path) -> bool:
    with path.open('rb') as file:
        start = file.read(64)
        file.seek(-64, os.SEEK_END)
        return start.lstrip()[:1] == b'{' and file.read().rstrip()[-1:] == b'}'


def _class_problems(path: Path, annotations: Annotations, dataset: ConfigDict,
                    to_the_end: bool) -> Iterator[str]:
    classes, names = list(dataset_meta(dataset)['classes']), annotations.categories
    unknown = [name for name in classes if name not in names]
    if len(unknown) == len(classes):
        yield (f'{path} has none of the {len(classes)} classes of its data set '
               f'({listed(classes)}): its categories are {listed(names)}. Name these in the data '
               "set's metainfo=dict(classes=(...)), and their number in the heads' num_classes")
    elif unknown and to_the_end:
        yield (f'{path} lacks {len(unknown)} categories of the data set ({listed(unknown)}): '
               'complete it')


def _image_problems(path: Path, annotations: Annotations, folder: Path, to_the_end: bool
                    ) -> Iterator[str]:
    names = [name for _, name in annotations.images]
    if to_the_end:
        present = set(os.listdir(folder))
        absent = [name for name in names if name not in present]
    else:
        names = names[:IMAGES_LOOKED_FOR]
        absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        yield (f'{len(absent)} of {len(names)} images that {path} lists do not exist, such as '
               f'{folder / absent[0]}: complete the images, or say where they are by the data '
               "set's data_prefix")
    elif _is_damaged(first := folder / names[0]):
        yield (f'{first} ({first.stat().st_size} bytes) is no image, or damaged: download the '
               'images again')


def _is_damaged(image: Path) -> bool:
    """Return whether a file of these names is empty, a pointer to an image, an error page, ..."""
    return image.suffix.lower() in ('.jpg', '.jpeg', '.png') and cv2.imread(str(image)) is None


def _id_problems(path: Path, annotations: Annotations) -> Iterator[str]:
    renumbered = [(name, id_) for id_, name in annotations.images
                  if (stem := Path(name).stem).isdigit() and len(stem) == 12 and int(stem) != id_]
    if renumbered:
        yield (f'{path} has other image ids than COCO: {renumbered[0][0]} has the id '
               f'{renumbered[0][1]} ({len(renumbered)} images)')
    if strange := annotations.annotated - annotations.ids:
        yield (f'{path} has objects of images that it does not list, such as image id '
               f'{min(strange)}')


def _evaluator_problems(config: Config, split: str, dataset: ConfigDict) -> Iterator[str]:
    name, evaluator = f'{split}_evaluator', config[f'{split}_evaluator']
    if not isinstance(evaluator, dict) or evaluator.type != 'CocoMetric':
        yield f'{name} has to be one CocoMetric, found {evaluator}'
        return
    if evaluator.get('format_only'):
        yield f'{name}.format_only=True would give no AP: leave it out'
    if dataset.get('indices') is not None:
        yield (f'{split}_dataloader.dataset.indices={dataset.indices} would count the objects of '
               'the other images as missed: give an annotation file of these images alone')
    try:
        tested = read_annotations(dataset_paths(dataset)[0]).ids
    except ValueError:  # which has been told
        return
    try:
        evaluated = read_annotations(Path(evaluator.ann_file)).ids
    except ValueError as error:
        yield f'{name}.ann_file: {error}'
        return
    if tested != evaluated:
        yield (f'{name}.ann_file: {evaluator.ann_file} has other image ids than the images that '
               f'are tested: {len(tested - evaluated)} of {len(tested)} tested images are not in '
               f'it, {len(evaluated - tested)} of its {len(evaluated)} are not tested')
