"""Whether the data of a detector is there, and is what its config expects of it."""
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config, ConfigDict

from .annotations import Annotations, read_annotations
from .config import Doubt, class_of, datasets_below, listed, loader_problem
from .images import absent_images, damage, is_turned, size_as_read
from .labels import (
    class_names,
    disagreement,
    head_problems,
    heads_of,
    is_open,
    label_problems,
    labelled,
)

WHERE = ('Put COCO, or a link to it, under data/coco of the folder where you start the command, or '
         'say where it is: --data-root of reproduce.py, --cfg-options elsewhere (README, "Data").')
IMAGES_LOOKED_FOR = 100
IMAGES_OPENED = 36
NEEDED = {'id': 'a number as id', 'segmentation': 'an outline as segmentation'}


@dataclass(frozen=True)
class Source:
    """A data set in COCO's format, as MMDetection's ``CocoDataset`` reads it from this machine."""

    config: ConfigDict
    path: Path
    folder: Path
    annotations: Annotations
    classes: list[str]


def dataset_meta(dataset: ConfigDict) -> dict:
    """Return what a data set's config tells of its classes: 'classes' and their 'palette'."""
    while 'dataset' in dataset or 'datasets' in dataset:  # a wrapper, such as ConcatDataset
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    meta = dict(palette='random') | class_of(dataset.type, DATASETS).METAINFO | {
        key.lower(): value for key, value in (dataset.get('metainfo') or {}).items() if value}
    return meta | dict(classes=class_names(meta.get('classes')))


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
        to_the_end: look for every image, and ask for what COCO 2017 has: all classes, its ids, and
            an evaluator of the images that are tested.
    """
    if problem := loader_problem(config, splits[0]):
        yield problem
        return
    datasets = {split: [dataset for dataset in datasets_below(config.get(f'{split}_dataloader'))
                        if 'ann_file' in dataset] for split in splits}
    problems = list(_prefix_problems(datasets)) or list(_path_problems(config, datasets))
    yield from problems
    if problems:
        return
    sources, broken = _sources(datasets)
    yield from broken
    looked_at = []
    for source in itertools.chain.from_iterable(sources.values()):
        if source.config not in looked_at:  # the test's are most often the validation's
            looked_at.append(source.config)
            yield from _source_problems(source, to_the_end)
    if broken:
        return
    yield from _label_problems(config, sources)
    for split, found in sources.items():
        if split != 'train':
            yield from _evaluation_problems(config, split, found, to_the_end)
        elif found and len(found) == len(datasets[split]):
            yield from _nothing_to_learn(found)


def _prefix_problems(datasets: dict[str, list]) -> Iterator[str]:
    for split, found in datasets.items():
        for dataset in found:
            prefix = dataset.get('data_prefix')
            if isinstance(prefix, str):
                yield (f'data_prefix={prefix!r} of {split}_dataloader must be a dict: write '
                       f'data_prefix=dict(img={prefix!r})')


def _path_problems(config: Config, datasets: dict[str, list]) -> Iterator[str]:
    paths = [path for path in dict.fromkeys(_paths(config, datasets)) if not path.exists()]
    if paths:
        lines = '\n'.join(f'  {path.absolute()}' for path in paths)
        yield f'the data set is incomplete; not found:\n{lines}\n{WHERE}'


def _paths(config: Config, datasets: dict[str, list]) -> Iterator[Path]:
    """Yield the local files and folders that are read."""
    sources = [os.path.join(dataset.get('data_root') or '', source)
               for found in datasets.values() for dataset in found
               for source in (dataset.ann_file, *(dataset.get('data_prefix') or {}).values())
               if source and isinstance(source, str)]
    sources += [evaluator.get('ann_file') for split in datasets
                for evaluator in evaluators_of(config, split)]
    return (Path(source) for source in sources if source and '://' not in source)


def evaluators_of(config: Config, split: str) -> list[ConfigDict]:
    """Return the configs of the metrics of a split."""
    evaluators = config.get(f'{split}_evaluator') or []
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    return [evaluator for evaluator in evaluators if isinstance(evaluator, dict)]


def _sources(datasets: dict[str, list]) -> tuple[dict[str, list[Source]], list[str]]:
    """Return the data sets of COCO's format by split, and why some cannot be read."""
    sources, problems = {}, []
    for split, found in datasets.items():
        sources[split] = []
        for dataset in filter(is_coco, found):
            path, folder = dataset_paths(dataset)
            if not path.is_file():
                problems.append(f"{path} is not a file: give the data set's ann_file="
                                f'{dataset.ann_file!r} its name')
                continue
            try:
                annotations = read_annotations(path)
            except ValueError as error:
                problems.append(str(error))
                continue
            classes = dataset_meta(dataset)['classes']
            sources[split].append(Source(dataset, path, folder, annotations, classes))
    return sources, list(dict.fromkeys(problems))


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


def _source_problems(source: Source, to_the_end: bool) -> Iterator[str]:
    path, annotations = source.path, source.annotations
    if not annotations.images or (to_the_end and not annotations.objects):
        yield (f'{path} has {len(annotations.images)} images and {annotations.objects} objects: '
               'give the annotations of a data set that has some')
        return
    yield from _entry_problems(path, annotations)
    yield from _mask_problems(source)
    yield from _image_problems(source, to_the_end)
    if to_the_end:
        yield from _id_problems(source)


def _entry_problems(path: Path, annotations: Annotations) -> Iterator[str]:
    """Yield where MMDetection would stop, or mix up what it reads."""
    for told, (count, image) in annotations.unread.items():
        yield f'{path} has {count} {told}, such as in the entry of {image}: complete the file'
    for what, ids in annotations.twice.items():
        yield (f'{path} has {len(ids)} ids that more than one {what} has, such as {ids[0]!r}: give '
               f'each {what} an id of its own')


def _mask_problems(source: Source) -> Iterator[str]:
    if not _loads_masks(source.config.get('pipeline')):
        return
    count = source.annotations.count('no mask', source.classes)
    if count:
        yield (f'{source.path} has {count} objects without a mask, such as in the entry of '
               f'{source.annotations.example("no mask", source.classes)}, and the pipeline of the '
               'data set loads masks (with_mask=True): remove these objects, complete their '
               'segmentation, or use a detector without masks')


def _loads_masks(pipeline) -> bool:
    """Return whether a step of a pipeline, or of its branches, loads masks."""
    if isinstance(pipeline, dict):
        return pipeline.get('with_mask') is True or any(map(_loads_masks, pipeline.values()))
    return isinstance(pipeline, (list, tuple)) and any(map(_loads_masks, pipeline))


def _image_problems(source: Source, to_the_end: bool) -> Iterator[str]:
    images, folder = list(source.annotations.images.values()), source.folder
    looked_for = [name for name, *_ in images[:None if to_the_end else IMAGES_LOOKED_FOR]]
    if absent := absent_images(looked_for, folder):
        yield (f'{len(absent)} of {len(looked_for)} images that {source.path} lists do not exist, '
               f'such as {folder / absent[0]}: complete the images, or say where they are by the '
               "data set's data_prefix")
        return
    opened = [image for image in images[::-(-len(images) // IMAGES_OPENED)]
              if (folder / image[0]).is_file()]
    if damaged := list(damage(folder / name for name, *_ in opened)):
        yield from damaged
        return
    sizes = [(folder / name, (width, height), size_as_read(folder / name, (width, height)))
             for name, width, height in opened]
    other = [entry for entry in sizes if entry[1] != entry[2]]
    if other:
        image, told, found = other[0]
        turned = ', by its EXIF orientation' if is_turned(image) else ''
        yield Doubt(f'{len(other)} of {len(opened)} images that were opened have another size than '
                    f'{source.path} says, such as {image}: {found[0]}x{found[1]} as it is '
                    f'read{turned}, and {told[0]}x{told[1]} in its entry. Do the boxes fit the '
                    'image as it is read?')


def _id_problems(source: Source) -> Iterator[str]:
    path, annotations = source.path, source.annotations
    renumbered = [(name, id_) for id_, (name, *_) in annotations.images.items()
                  if (stem := Path(name).stem).isdigit() and len(stem) == 12 and int(stem) != id_]
    if renumbered:
        yield (f'{path} has other image ids than COCO: {renumbered[0][0]} has the id '
               f'{renumbered[0][1]} ({len(renumbered)} images)')
    if strange := annotations.annotated - annotations.images.keys():
        yield (f'{path} has objects of images that it does not list, such as image id '
               f'{min(strange)}')
    if unknown := [name for name in source.classes if name not in annotations.categories]:
        yield (f'{path} lacks {len(unknown)} categories of the data set ({listed(unknown)}): '
               'complete it')


def _nothing_to_learn(sources: list[Source]) -> Iterator[str]:
    """Yield that a training has no objects, in all of its data sets together."""
    if any(source.annotations.count('learned', source.classes) for source in sources):
        return
    crowds = sum(source.annotations.count('crowd', source.classes) for source in sources)
    objects = sum(source.annotations.objects for source in sources)
    yield (f'{listed(source.path for source in sources)} have {objects} objects, '
           f'{crowds} of them crowds (iscrowd=1), and none to learn from: MMDetection leaves out '
           'crowds, objects of other categories than the classes, and those without area or '
           'outside their image. Give annotations with objects, or correct these')


def _label_problems(config: Config, sources: dict[str, list[Source]]) -> Iterator[str]:
    """Yield where labels have other names, or another number, than data sets and heads say."""
    problems = list(dict.fromkeys(
        problem for some in sources.values() for source in some
        for problem in label_problems(source.path, source.annotations, source.classes)))
    yield from problems
    model = config.get('model') or {}
    if problems or is_open(model):
        return
    first, *others = [source for some in sources.values() for source in some] or [None]
    for other in others:
        if problem := disagreement(first.path, _names(first), other.path, _names(other)):
            yield problem
            return
    heads = heads_of(model)
    problems = [problem for split, some in sources.items() for source in some
                for problem in head_problems(heads, source.path, source.annotations,
                                             source.classes, evaluated=split != 'train')]
    yield from [problem for problem in problems if not isinstance(problem, Doubt)] or problems


def _names(source: Source) -> list[str]:
    return labelled(source.annotations, source.classes)


def _evaluation_problems(config: Config, split: str, tested: list[Source], to_the_end: bool
                         ) -> Iterator[str]:
    """Yield where COCO's evaluation would stop, or count other images than those that are tested.
    """
    name = f'{split}_evaluator'
    if to_the_end and (problem := _no_benchmark(config, split)):
        yield problem
        return
    for evaluator in evaluators_of(config, split):
        path = evaluator.get('ann_file')
        if class_of(evaluator.get('type'), METRICS) is not CocoMetric or '://' in str(path):
            continue
        if path is None:  # what the data set reads is evaluated
            yield from _no_objects(tested, 'learned')
            continue
        try:
            annotations = read_annotations(Path(path))
        except ValueError as error:
            yield f'{name}.ann_file: {error}'
            continue
        yield from _image_disagreements(name, path, annotations, tested, to_the_end)
        evaluated = [replace(source, path=Path(path), annotations=annotations)
                     for source in tested[:1]]
        if not evaluator.get('format_only'):
            yield from _no_objects(evaluated, 'evaluated')
            for source in evaluated:
                yield from _not_evaluable(source, evaluator.get('metric') or 'bbox')
        if Path(path) not in [source.path for source in tested]:
            yield from _label_problems(config, {split: evaluated + tested})


def _no_benchmark(config: Config, split: str) -> str | None:
    """Return why the results of a split could not be put beside the paper's."""
    name, evaluator = f'{split}_evaluator', config[f'{split}_evaluator']
    dataset = config[f'{split}_dataloader'].dataset
    if (not isinstance(evaluator, dict)
            or class_of(evaluator.get('type'), METRICS) is not CocoMetric
            or not evaluator.get('ann_file')):
        return f'{name} has to be one CocoMetric with an ann_file, found {evaluator}'
    if evaluator.get('format_only'):
        return f'{name}.format_only=True would give no AP: leave it out'
    if dataset.get('indices') is not None:
        return (f'{split}_dataloader.dataset.indices={dataset.indices} would count the objects of '
                'the other images as missed: give an annotation file of these images alone')
    return None


def _image_disagreements(name: str, path: str, annotations: Annotations, tested: list[Source],
                         to_the_end: bool) -> Iterator[str]:
    images = {id_: image for source in tested for id_, image in _tested(source)}
    if not images:
        return
    unknown = [id_ for id_ in images if id_ not in annotations.images]
    missed = [id_ for id_ in annotations.images if id_ not in images]
    other = [(image, annotations.images[id_][0]) for id_, (image, *_) in images.items()
             if id_ in annotations.images
             and Path(image).stem != Path(annotations.images[id_][0]).stem]
    if unknown or (missed and to_the_end):
        yield (f'{name}.ann_file: {path} has other image ids than the images that are tested: '
               f'{len(unknown)} of {len(images)} tested images are not in it, {len(missed)} of its '
               f'{len(annotations.images)} are not tested. Give the file of the data set')
    elif missed:
        yield Doubt(f'{name}.ann_file: {len(missed)} of the {len(annotations.images)} images of '
                    f'{path} are not tested: their objects count as missed')
    if other:
        yield Doubt(f'{name}.ann_file: {path} has other images than the data set under the same '
                    f'ids, such as {other[0][1]} in place of {other[0][0]}')


def _tested(source: Source) -> list[tuple]:
    """Return the images of a data set, by their ids."""
    images, indices = list(source.annotations.images.items()), source.config.get('indices')
    if indices is None:
        return images
    return images[:indices] if isinstance(indices, int) else [images[index] for index in indices]


def _no_objects(sources: list[Source], kind: str) -> Iterator[str]:
    if sources and not any(source.annotations.count(kind, source.classes) for source in sources):
        yield Doubt(f'{listed(source.path for source in sources)} has no objects of the classes to '
                    'evaluate: every AP will be -1')


def _not_evaluable(source: Source, metric: str | list[str]) -> Iterator[str]:
    metrics = [metric] if isinstance(metric, str) else metric
    needed = ['id', 'iscrowd', 'area', *(['bbox'] if metrics != ['segm'] else []),
              *(['segmentation'] if 'segm' in metrics else [])]
    for key in needed:
        if count := source.annotations.count(f'no {key}', source.classes):
            image = source.annotations.example(f'no {key}', source.classes)
            yield (f"{source.path} has {count} objects without {NEEDED.get(key, key)}, such as in "
                   f"the entry of {image}, which COCO's evaluation of {listed(metrics)} needs: "
                   'complete the file')
