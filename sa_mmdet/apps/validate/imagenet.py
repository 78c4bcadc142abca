"""Check that the files of a data set are what MMPretrain's ``ImageNet`` expects."""
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.fileio import get_file_backend

from .config import datasets_below, loader_problem
from .dataset import class_names
from .images import absent_images, damage

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')
TYPES = ('ImageNet', 'mmpretrain.ImageNet')
CLASSES = 1000
WHERE = ('Link ImageNet to data/imagenet in the folder where you start the command, or give its '
         'folder: --data-root of reproduce.py, or data_root of the data sets elsewhere '
         '(docs/imagenet.md, "Data")')


def imagenet_datasets(loader: ConfigDict | None) -> Iterator[ConfigDict]:
    """Yield the configs of ``ImageNet`` data sets in a loader's config, inside any wrappers.

    Their images and classes may differ from ImageNet's. Data sets on other machines are skipped.
    """
    return (dataset for dataset in datasets_below(loader) if _name(dataset.get('type')) in TYPES
            and '://' not in (dataset.get('data_root') or ''))


def _name(kind: str | type | None) -> str | None:
    """Return the name of a data set's class, even if MMPretrain is not installed."""
    return kind.__name__ if isinstance(kind, type) else kind


def image_folder(dataset: dict) -> Path:
    """Return a data set's image folder, which may have one folder per class."""
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    if isinstance(prefix, dict):
        prefix = prefix.get('img_path') or ''
    return Path(os.path.join(dataset.get('data_root') or '', prefix))


def label_file(dataset: dict) -> Path | None:
    """Return the file with a line "image class" per image; None if folders give the classes."""
    root = Path(dataset.get('data_root') or '')
    if dataset.get('ann_file'):
        return root / dataset['ann_file']
    usual = root / 'meta' / f'{dataset.get("split")}.txt'
    return usual if dataset.get('split') and usual.is_file() else None


def class_count(dataset: dict) -> int:
    """Return a data set's number of classes: ImageNet's, or as many as its config names."""
    classes = (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
    return len(class_names(classes) or range(CLASSES))


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders, in the order of their labels.

    Hidden folders are included, as in MMPretrain.
    """
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def labelled_images(dataset: dict) -> list[tuple[str, int]]:
    """Return the images of a data set, as paths below ``image_folder``, with their classes.

    Raises:
        OSError, ValueError: a file cannot be read, or a line of ``label_file`` is malformed.
    """
    folder, file = image_folder(dataset), label_file(dataset)
    if file:
        return [_labelled(line, number, file, folder)
                for number, line in enumerate(file.read_text().splitlines(), start=1)]
    return [(f'{name}/{image}', label) for label, name in enumerate(class_folders(folder))
            for image in sorted(_images(folder / name))]


def imagenet_problems(config: Config, splits: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong with a classifier's data, as sentences for the user.

    Every image of ``label_file``, or one of each class folder, must exist. One image is opened.

    Args:
        config: the config of a classifier. Only ``ImageNet`` data sets are checked.
        splits: the splits that are read, of 'train', 'val' and 'test'.
    """
    if problem := loader_problem(config, splits[0]):
        yield problem
        return
    datasets = []
    for split in splits:
        for dataset in imagenet_datasets(config.get(f'{split}_dataloader')):
            if dataset not in datasets:  # val and test often share one data set
                datasets.append(dataset)
    problems = list(dict.fromkeys(
        problem for dataset in datasets for problem in _problems(dataset)))
    if not problems:
        problems = [*_number_problems(config, datasets, splits), *_disagreements(datasets)]
    yield from problems


def _problems(dataset: ConfigDict) -> Iterator[str]:
    folder = image_folder(dataset)
    if not folder.is_dir():
        found = 'is not a folder' if folder.exists() else 'does not exist'
        yield (f'{folder.absolute()} {found}: expected the images of ImageNet, in one folder per '
               f'class. {WHERE}')
        return
    try:
        yield from _label_problems(dataset) if label_file(dataset) else _folder_problems(dataset)
    except (OSError, ValueError) as error:
        yield str(error)


def _number_problems(config: Config, datasets: list[ConfigDict],
                     splits: tuple[str, ...]) -> Iterator[str]:
    """Yield how the head or the metric disagrees with the number of classes."""
    outputs = (config.model.get('head') or {}).get('num_classes')
    for count in {class_count(dataset) for dataset in datasets}:
        if outputs is not None and outputs != count:
            yield (f'model.head.num_classes={outputs}, but the data sets have {count} classes: '
                   f'give --cfg-options model.head.num_classes={count}')
        for split in set(splits) - {'train'}:
            evaluator = config.get(f'{split}_evaluator')
            evaluator = evaluator[0] if isinstance(evaluator, list) else evaluator
            topk = as_tuple((evaluator or {}).get('topk') or 1)
            if max(topk) > count:
                yield (f'{split}_evaluator.topk={topk} asks for the top {max(topk)} of {count} '
                       f'classes: give --cfg-options {split}_evaluator.topk=1, or more classes')


def as_tuple(value) -> tuple:
    """Return a config's list as a tuple, or a single value as a tuple of one."""
    return tuple(value) if isinstance(value, list | tuple) else (value, )


def _disagreements(datasets: list[ConfigDict]) -> Iterator[str]:
    """Yield folders that differ in their classes: a label is a position in the sorted folders."""
    folders = list(dict.fromkeys(image_folder(dataset) for dataset in datasets
                                 if not label_file(dataset)))
    for folder in folders[1:]:
        differing = set(class_folders(folders[0])) ^ set(class_folders(folder))
        if differing:
            yield (f'{folders[0]} and {folder} have different class folders, such as '
                   f'{min(differing)}. A label is the position of a folder in the order of names: '
                   'give the folders of both the same names')


def _folder_problems(dataset: ConfigDict) -> Iterator[str]:
    folder, expected = image_folder(dataset), class_count(dataset)
    classes = class_folders(folder)
    if len(classes) != expected:
        hidden = [name for name in classes if name.startswith('.')]
        images = sum(_is_image(entry.name) for entry in os.scandir(folder))
        if hidden:
            remedy = f'remove {hidden[0]}, which MMPretrain takes for a class'
        elif images:
            remedy = ('sort the images into one folder per class, or list them with their '
                      f'classes in {folder.parent / "meta" / f"{folder.name}.txt"}')
        else:
            remedy = ('complete it, or set metainfo.classes of the data sets and '
                      'model.head.num_classes to match it')
        beside = f' and {images} images outside them' if images else ''
        yield (f'{folder} has {len(classes)} class folders{beside}, expected {expected}: '
               f'{remedy}')
        return
    firsts = {name: next(_images(folder / name), None) for name in classes}
    empty = [name for name in classes if firsts[name] is None]
    if empty:
        yield (f'{folder} has no images of {len(empty)} of its {len(classes)} classes, such as '
               f'{empty[0]}: complete it')
        return
    if problem := damage([folder / classes[0] / firsts[classes[0]]]):
        yield problem


def _label_problems(dataset: ConfigDict) -> Iterator[str]:
    file, folder, classes = label_file(dataset), image_folder(dataset), class_count(dataset)
    images = labelled_images(dataset)
    names, labels = [image for image, _ in images], {label for _, label in images}
    repeated = [name for name, times in Counter(names).items() if times > 1]
    absent = absent_images(names, folder)
    if not images:
        yield f'{file} lists no images: write a line "path class" for each image'
    elif not labels <= set(range(classes)):
        yield (f'{file} has classes from {min(labels)} to {max(labels)}, but the config expects 0 '
               f'to {classes - 1}. A class is the position, counted from 0, of its folder in the '
               'sorted folders of the training images')
    elif len(labels) < classes:
        yield f'{file} has images of {len(labels)} classes, expected {classes}: complete it'
    elif repeated:
        yield f'{file} lists {len(repeated)} images more than once, such as {repeated[0]}'
    elif absent:
        yield (f'{file} lists {len(absent)} images that do not exist, such as '
               f'{folder / absent[0]}. Fix their paths, or add the images. If the images are in '
               f'class folders, remove {file}')
    elif problem := damage([folder / names[0]]):
        yield problem


def _labelled(line: str, number: int, file: Path, folder: Path) -> tuple[str, int]:
    name, space, label = line.strip().rpartition(' ')
    if not space or not label.isdigit():
        raise ValueError(f'{file}, line {number}: expected the path of an image and the number '
                         f'of its class, found {line[:80]!r}')
    return Path(os.path.relpath(folder / name, folder)).as_posix(), int(label)


def _images(folder: Path) -> Iterator[str]:
    """Yield the images in and below a folder, as MMPretrain finds them."""
    files = get_file_backend(str(folder)).list_dir_or_file(
        str(folder), list_dir=False, list_file=True, recursive=True)
    return (file for file in files if _is_image(file))


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)
