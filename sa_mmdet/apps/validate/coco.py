"""Whether the data of a detector is there, and is what its config expects of it."""
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from .annotations import read_annotations
from .config import Doubt, datasets_below, listed, loader_problem
from .dataset import Source, dataset_meta, dataset_paths, is_coco
from .evaluation import benchmark_problem, evaluated_files, evaluation_problems, evaluators_of
from .images import absent_images, damage, is_turned, size_as_read
from .labels import label_problems

WHERE = ('Put COCO, or a link to it, under data/coco of the folder where you start the command, or '
         'say where it is: --data-root of reproduce.py, --cfg-options elsewhere (README, "Data").')
IMAGES_LOOKED_FOR = 100
IMAGES_OPENED = 36


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
    sources = {}
    if not problems:
        sources, problems = _sources(datasets)
    yield from problems
    looked_at = []
    for source in itertools.chain.from_iterable(sources.values()):
        if source.config not in looked_at:  # the test's are most often the validation's
            looked_at.append(source.config)
            yield from _source_problems(source, to_the_end)
    if not problems:
        yield from _joint_problems(config, datasets, sources, to_the_end)


def _joint_problems(config: Config, datasets: dict[str, list], sources: dict[str, list[Source]],
                    to_the_end: bool) -> Iterator[str]:
    """Yield what is wrong with data sets, evaluators and heads beside each other."""
    trained, evaluated, problems = sources.get('train', []), [], []
    if trained and len(trained) == len(datasets['train']):
        problems += _nothing_to_learn(trained)
    for split, tested in sources.items():
        if split == 'train':
            continue
        if to_the_end and (problem := benchmark_problem(config, split)):
            problems.append(problem)
            continue
        files, unread = evaluated_files(config, split, tested)
        problems += unread
        for evaluator, counted in files:
            problems += evaluation_problems(
                evaluator, counted, tested, f'{split}_evaluator', to_the_end)
        evaluated += [*tested, *(counted for _, counted in files)]
    yield from label_problems(config.get('model') or {}, trained, evaluated)
    yield from problems


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
            sources[split].append(Source(dataset, path, annotations, folder, classes))
    return sources, list(dict.fromkeys(problems))


def _source_problems(source: Source, to_the_end: bool) -> Iterator[str]:
    path, annotations = source.path, source.annotations
    if not annotations.images or (to_the_end and not annotations.objects):
        yield (f'{path} has {len(annotations.images)} images and {annotations.objects} objects: '
               'give the annotations of a data set that has some')
        return
    yield from _entry_problems(source)
    yield from _mask_problems(source)
    yield from _image_problems(source, to_the_end)
    if to_the_end:
        yield from _id_problems(source)


def _entry_problems(source: Source) -> Iterator[str]:
    """Yield where MMDetection would stop, or mix up what it reads."""
    path = source.path
    for told, (count, image) in source.annotations.unread.items():
        yield f'{path} has {count} {told}, such as in the entry of {image}: complete the file'
    for what, ids in source.annotations.twice.items():
        yield (f'{path} has {len(ids)} ids that more than one {what} has, such as {ids[0]!r}: give '
               f'each {what} an id of its own')


def _mask_problems(source: Source) -> Iterator[str]:
    if not _loads_masks(source.config.get('pipeline')):
        return
    if count := source.count('no mask'):
        yield (f'{source.path} has {count} objects without a mask, such as in the entry of '
               f'{source.example("no mask")}, and the pipeline of the data set loads masks '
               '(with_mask=True): remove these objects, complete their segmentation, or use a '
               'detector without masks')


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
    if any(source.count('learned') for source in sources):
        return
    crowds = sum(source.count('crowd') for source in sources)
    objects = sum(source.annotations.objects for source in sources)
    yield (f'{listed(source.path for source in sources)} have {objects} objects, '
           f'{crowds} of them crowds (iscrowd=1), and none to learn from: MMDetection leaves out '
           'crowds, objects of other categories than the classes, and those without area or '
           'outside their image. Give annotations with objects, or correct these')


