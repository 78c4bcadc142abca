"""Whether the files of a data set hold what MMPretrain's ``ImageNet`` expects of them."""
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
from mmengine.config import Config, ConfigDict

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')
TYPES = ('ImageNet', 'mmpretrain.ImageNet')
CLASSES = 1000


def imagenet_datasets(node) -> Iterator[ConfigDict]:
    """The data sets of MMPretrain's ``ImageNet`` below a data loader's config, inside any wrappers.

    They may be of other images and classes than ImageNet's; those on other machines are left out.
    """
    if isinstance(node, list):
        for item in node:
            yield from imagenet_datasets(item)
    elif isinstance(node, dict):
        is_local = not node.get('backend_args') and '://' not in (node.get('data_root') or '')
        if node.get('type') in TYPES and is_local:
            yield node
        for key in ('dataset', 'datasets'):
            yield from imagenet_datasets(node.get(key))


def image_folder(dataset: ConfigDict) -> Path:
    """The folder that holds the images of a data set, in folders of their classes or directly."""
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    if isinstance(prefix, dict):
        prefix = prefix.get('img_path') or ''
    return Path(os.path.join(dataset.get('data_root') or '', prefix))


def label_file(dataset: ConfigDict) -> Path | None:
    """The file with an image and its class in each line; None where folders tell the classes."""
    root = Path(dataset.get('data_root') or '')
    if dataset.get('ann_file'):
        return root / dataset.ann_file
    usual = root / 'meta' / f'{dataset.get("split")}.txt'
    return usual if dataset.get('split') and usual.is_file() else None


def class_count(dataset: ConfigDict) -> int:
    """The number of classes of a data set: ImageNet's, or as many as its config names."""
    classes = dataset.get('classes') or (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str):  # a file with a class in each line
        classes = Path(classes).read_text().split('\n')
        classes = [name for name in classes if name.strip()]
    return len(classes) if classes else CLASSES


def class_folders(folder: Path) -> list[str]:
    """The names of the folders of classes, in the order of their labels."""
    return sorted(entry.name for entry in os.scandir(folder)
                  if entry.is_dir() and not entry.name.startswith('.'))


def labelled_images(dataset: ConfigDict) -> list[tuple[str, int]]:
    """The images of a data set, by their paths below ``image_folder``, with their classes.

    Raises:
        OSError, ValueError: the files cannot be read, or a line of ``label_file`` is none.
    """
    folder, file = image_folder(dataset), label_file(dataset)
    if file:
        return [_labelled(line, number, file)
                for number, line in enumerate(file.read_text().splitlines(), start=1)]
    return [(path.relative_to(folder).as_posix(), label)
            for label, name in enumerate(class_folders(folder))
            for path in sorted((folder / name).rglob('*')) if _is_image(path.name)]


def imagenet_problems(config: Config, splits: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with the data of a classifier, sentences for people; nothing if all is there.

    The images of ``label_file`` and of each class are looked for, not all of them are opened.

    Args:
        config: of a classifier; nothing is said about data sets of other types.
        splits: the data sets that are read, of 'train', 'val' and 'test'.
    """
    datasets = [dataset for split in splits
                for dataset in imagenet_datasets(config.get(f'{split}_dataloader'))]
    problems = list(dict.fromkeys(
        problem for dataset in datasets for problem in _problems(dataset)))
    if not problems:
        problems = [*_head_problems(config, datasets), *_disagreements(datasets)]
    yield from problems


def _problems(dataset: ConfigDict) -> Iterator[str]:
    folder = image_folder(dataset)
    if not folder.is_dir():
        found = 'is not a folder' if folder.exists() else 'does not exist'
        yield (f'{folder.absolute()} {found}: it should hold the images of ImageNet in one folder '
               'for each class. Link ImageNet to data/imagenet of the folder where you start the '
               'command, or say where it is (docs/use.md, "Data")')
        return
    try:
        yield from _label_problems(dataset) if label_file(dataset) else _folder_problems(dataset)
    except (OSError, ValueError) as error:
        yield str(error)


def _head_problems(config: Config, datasets: list[ConfigDict]) -> Iterator[str]:
    outputs = (config.model.get('head') or {}).get('num_classes')
    for count in {class_count(dataset) for dataset in datasets}:
        if outputs is not None and outputs != count:
            yield (f'model.head.num_classes={outputs}, and the data sets have {count} classes: '
                   f'give --cfg-options model.head.num_classes={count}')


def _disagreements(datasets: list[ConfigDict]) -> Iterator[str]:
    """Labels are the places of the folders in their order: they have to be the same everywhere."""
    folders = list(dict.fromkeys(image_folder(dataset) for dataset in datasets
                                 if not label_file(dataset)))
    for folder in folders[1:]:
        differing = set(class_folders(folders[0])) ^ set(class_folders(folder))
        if differing:
            yield (f'{folders[0]} and {folder} have folders of different classes, such as '
                   f'{min(differing)}: labels are their places in the order of names, so that they '
                   'have to be called alike')


def _folder_problems(dataset: ConfigDict) -> Iterator[str]:
    folder, expected = image_folder(dataset), class_count(dataset)
    classes = class_folders(folder)
    if len(classes) != expected:
        images = sum(_is_image(entry.name) for entry in os.scandir(folder))
        yield (f'{folder} has {len(classes)} folders of classes'
               + (f' and {images} images beside them' if images else '')
               + f', {expected} are needed: ' + (
                   'sort the images into one folder for each class, or list them with their '
                   f'classes in {folder.parent / "meta" / f"{folder.name}.txt"}' if images else
                   'complete it, or name its classes by metainfo.classes of the data sets and '
                   'their number by model.head.num_classes'))
        return
    empty = [name for name in classes if not _first_image(folder / name)]
    if empty:
        yield (f'{folder} has no image of {len(empty)} of its {len(classes)} classes, such as '
               f'{empty[0]}: complete it')
        return
    yield from _image_problems(_first_image(folder / classes[0]))


def _label_problems(dataset: ConfigDict) -> Iterator[str]:
    file, folder, classes = label_file(dataset), image_folder(dataset), class_count(dataset)
    images = labelled_images(dataset)
    labels = {label for _, label in images}
    if not images:
        yield f'{file} lists no image: write a line "path class" for each'
    elif not labels <= set(range(classes)):
        yield (f'{file} has classes from {min(labels)} to {max(labels)}, those of the config go '
               f'from 0 to {classes - 1}')
    elif len(labels) < classes:
        yield f'{file} has images of {len(labels)} classes, {classes} are needed: complete it'
    else:
        yield from _image_problems(folder / images[0][0])


def _image_problems(image: Path) -> Iterator[str]:
    if not image.is_file():
        yield f'{image} does not exist: complete the images'
    elif cv2.imread(str(image)) is None:
        yield (f'{image} ({image.stat().st_size} bytes) is no image, or damaged: copy the images '
               'again')


def _labelled(line: str, number: int, file: Path) -> tuple[str, int]:
    name, space, label = line.strip().rpartition(' ')
    if not space or not label.isdigit():
        raise ValueError(f'{file}, line {number}: {line[:80]!r} is not the path of an image and '
                         'the number of its class')
    return name, int(label)


def _first_image(folder: Path) -> Path | None:
    return next((path for path in folder.rglob('*') if _is_image(path.name)), None)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)
