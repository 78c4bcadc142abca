"""Check that a detector's data exists and is what its config expects."""
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

from .annotations import read_annotations
from .config import Doubt, datasets_below, dicts_below, listed, loader_problem
from .dataset import (
    Source,
    dataset_meta,
    dataset_paths,
    has_local_images,
    is_coco,
    is_local,
)
from .evaluation import (
    annotation_file,
    benchmark_problem,
    counted_files,
    evaluation_problems,
    evaluators_of,
)
from .images import absent_images, damage, is_turned, size_as_read
from .labels import label_problems

WHERE = ('Set data_root, ann_file and data_prefix of the data set, in the config or with '
         '--cfg-options, or give --data-root to reproduce.py. The configs here expect COCO, or a '
         'link to it, at data/coco in the folder where you start the command (docs/use.md, '
         '"Data").')
IMAGES_LOOKED_FOR = 100
IMAGES_OPENED = 36


def coco_problems(config: Config, splits: tuple[str, ...], as_benchmark: bool = False,
                  evaluates: bool = True) -> Iterator[str]:
    """Yield what is wrong with a detector's data, as sentences for the user.

    For data sets in other formats than COCO's, only the paths are checked.

    Args:
        config: the config of a detector.
        splits: the splits that are read, of 'train', 'val' and 'test'.
        as_benchmark: look for every image, and require what COCO 2017 has: all classes, its ids,
            and an evaluator of the tested images.
        evaluates: whether predictions are evaluated.
    """
    if problem := loader_problem(config, splits[0]):
        yield problem
        return
    datasets = {split: [dataset for dataset in datasets_below(config.get(f'{split}_dataloader'))
                        if 'ann_file' in dataset] for split in splits}
    problems = list(_prefix_problems(datasets)) or list(
        _path_problems(config, datasets, evaluates))
    sources = {}
    if not problems:
        sources, problems = _sources(datasets)
    yield from problems
    looked_at = []
    for source in itertools.chain.from_iterable(sources.values()):
        if source.config not in looked_at:  # val and test often share one data set
            looked_at.append(source.config)
            yield from _source_problems(source, as_benchmark)
    if not problems and evaluates:
        yield from _joint_problems(config, datasets, sources, as_benchmark)


def _joint_problems(config: Config, datasets: dict[str, list], sources: dict[str, list[Source]],
                    as_benchmark: bool) -> Iterator[str]:
    """Yield how data sets, evaluators and heads contradict each other."""
    trained, counted, problems = sources.get('train', []), [], []
    if trained and len(trained) == len(datasets['train']):
        problems += _nothing_to_learn(trained)
    for split, tested in sources.items():
        if split == 'train':
            continue
        if as_benchmark and (problem := benchmark_problem(config, split)):
            problems.append(problem)
            continue
        files, unread = counted_files(config, split, tested)
        problems += unread
        for file in files:
            problems += evaluation_problems(file, tested, f'{split}_evaluator', as_benchmark)
            problems += _repeated_ids(file.source)
        counted += files
    yield from label_problems(config.get('model') or {}, trained, counted)
    yield from problems


def _prefix_problems(datasets: dict[str, list]) -> Iterator[str]:
    for split, found in datasets.items():
        for dataset in filter(is_coco, found):
            prefix = dataset.get('data_prefix')
            if not isinstance(prefix, dict) or not isinstance(prefix.get('img'), str):
                folder = prefix if isinstance(prefix, str) else ''
                yield (f'data_prefix={prefix!r} of {split}_dataloader must name the image folder: '
                       f'write data_prefix=dict(img={folder!r})')


def _path_problems(config: Config, datasets: dict[str, list], evaluates: bool) -> Iterator[str]:
    found = [path for some in datasets.values() for dataset in some if is_local(dataset)
             for path in _paths(dataset)]
    if evaluates:
        found += filter(None, (annotation_file(evaluator) for split in datasets
                               for evaluator in evaluators_of(config, split)))
    if missing := [path for path in dict.fromkeys(found) if not path.exists()]:
        lines = '\n'.join(f'  {path.absolute()}' for path in missing)
        yield f'the data set is incomplete. Not found:\n{lines}\n{WHERE}'


def _paths(dataset: ConfigDict) -> Iterator[Path]:
    """Yield the files and folders that a data set reads."""
    root, prefixes = dataset.get('data_root') or '', dict(dataset.get('data_prefix') or {})
    steps = list(dicts_below(dataset.get('pipeline')))
    if is_coco(dataset) and not any(step.get('with_seg') for step in steps):
        prefixes.pop('seg', None)
    if not has_local_images(dataset):
        prefixes = {}
    for source in (dataset.ann_file, *prefixes.values()):
        if source and isinstance(source, str):
            yield Path(os.path.join(root, source))


def _sources(datasets: dict[str, list]) -> tuple[dict[str, list[Source]], list[str]]:
    """Return the data sets in COCO's format by split, and why some cannot be read."""
    sources, problems = {}, []
    for split, found in datasets.items():
        sources[split] = []
        for dataset in filter(is_coco, found):
            path, folder = dataset_paths(dataset)
            if not path.is_file():
                problems.append(f'{path} is not a file: ann_file={dataset.ann_file!r} of the '
                                'data set must name the annotation file')
                continue
            try:
                annotations = read_annotations(path)
            except ValueError as error:
                problems.append(str(error))
                continue
            classes = dataset_meta(dataset)['classes']
            sources[split].append(Source(dataset, path, annotations, folder, classes))
    return sources, list(dict.fromkeys(problems))


def _source_problems(source: Source, as_benchmark: bool) -> Iterator[str]:
    path, annotations = source.path, source.annotations
    if not annotations.images or (as_benchmark and not annotations.objects):
        yield (f'{path} has {len(annotations.images)} images and {annotations.objects} objects: '
               'give an annotation file that has some')
        return
    if source.names and not source.images:
        yield (f'{path} has {len(annotations.images)} images and {annotations.objects} objects, '
               f'but filter_cfg={source.config.get("filter_cfg")} and '
               f'indices={source.config.get("indices")} leave none of them: set other values')
        return
    for reason, (count, image) in annotations.unreadable.items():
        yield f'{path} has {count} {reason}, such as in the entry of {image}. Complete the file'
    yield from _repeated_ids(source)
    if annotations.uncategorised:
        yield Doubt(f'{path} has {annotations.uncategorised} objects whose category_id is not in '
                    'its categories: MMDetection ignores them')
    yield from _mask_problems(source)
    if has_local_images(source.config):
        yield from _image_problems(source, as_benchmark)
    if as_benchmark:
        yield from _benchmark_id_problems(source)


def _repeated_ids(source: Source) -> Iterator[str]:
    for what, ids in source.annotations.repeated.items():
        if ids:
            yield (f'{source.path} has {len(ids)} ids that more than one {what} has, such as '
                   f'{ids[0]!r}: give each {what} its own id')


def _mask_problems(source: Source) -> Iterator[str]:
    steps = dicts_below(source.config.get('pipeline'))
    if any(step.get('with_mask') is True for step in steps) and (
            found := source.having('no mask')):
        yield (f'{source.path} has {len(found)} objects without a mask, such as in the entry of '
               f'{source.images[found[0]][0]}, but the pipeline of the data set loads masks '
               '(with_mask=True). Remove these objects, complete their segmentation, or use a '
               'detector without masks')


def _image_problems(source: Source, as_benchmark: bool) -> Iterator[str]:
    images, folder = list(source.images.values()), source.folder
    opened = images[::-(-len(images) // IMAGES_OPENED)] if images else []
    if as_benchmark:
        looked_for = [name for name, *_ in images]
        absent = absent_images(looked_for, folder)
    else:
        looked_for = dict.fromkeys(name for name, *_ in [*images[:IMAGES_LOOKED_FOR], *opened])
        absent = [name for name in looked_for if not (folder / name).is_file()]
    if absent:
        yield (f'{len(absent)} of {len(looked_for)} images that {source.path} lists do not exist, '
               f'such as {folder / absent[0]}. Add the missing images, or set data_prefix of the '
               'data set to their folder')
    elif problem := damage(folder / name for name, *_ in opened):
        yield problem
    elif not source.annotations.unreadable:
        yield from _size_doubt(source, opened)


def _size_doubt(source: Source, opened: list[tuple]) -> Iterator[str]:
    """Yield that images differ in size from their annotations."""
    sizes = [(path, told, size_as_read(path, told))
             for path, *told in ((source.folder / name, *size) for name, *size in opened)]
    other = [entry for entry in sizes if tuple(entry[1]) != entry[2]]
    if other:
        image, told, found = other[0]
        turned = ', turned by its EXIF orientation' if is_turned(image) else ''
        yield Doubt(f'{len(other)} of {len(opened)} images differ in size from their entries in '
                    f'{source.path}, such as {image}: it is read as {found[0]}x{found[1]}{turned}, '
                    f'but its entry says {told[0]}x{told[1]}. Check that the boxes fit the image '
                    'as read')


def _benchmark_id_problems(source: Source) -> Iterator[str]:
    path, annotations = source.path, source.annotations
    renumbered = [(name, id_) for id_, (name, *_) in annotations.images.items()
                  if (stem := Path(name).stem).isdigit() and len(stem) == 12 and int(stem) != id_]
    if renumbered:
        yield (f'{path} has other image ids than COCO: {renumbered[0][0]} has the id '
               f'{renumbered[0][1]} ({len(renumbered)} such images)')
    if annotations.unlisted:
        yield f'{path} has {annotations.unlisted} objects whose image it does not list'
    if unknown := [name for name in source.classes if name not in source.names]:
        yield (f'{path} lacks {len(unknown)} categories of the data set ({listed(unknown)}): '
               'complete it')


def _nothing_to_learn(sources: list[Source]) -> Iterator[str]:
    """Yield that there is nothing to learn in all training data sets together."""
    if any(source.having('learned') or source.annotations.unreadable or not source.images
           or not source.names for source in sources):
        return
    objects, unlisted = (sum(getattr(source.annotations, key) for source in sources)
                         for key in ('objects', 'unlisted'))
    crowds, small = (sum(len(source.having(kind)) for source in sources)
                     for kind in ('crowd', 'small'))
    yield (f'{listed(source.path for source in sources)} have {objects} objects, and none to learn '
           f'from. {crowds} are crowds (iscrowd=1), {small} are smaller than a pixel (boxes are '
           f'[x, y, width, height] in pixels), and {unlisted} have an image_id that no image has. '
           'The others have a category that is not a class, or are outside their image. Fix '
           'these, or give annotations with objects')
