"""Whether a data set in COCO's layout has all that training and evaluation need."""
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

from ...validate.coco import dataset_classes, read_annotations


def dataset_problems(config: Config, splits: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with the data of a config, sentences for people; nothing if all is there.

    Args:
        config: of a detector.
        splits: what is read of it, of 'train', 'val' and 'test'.
    """
    contents = {}
    for split in splits:
        dataset = config[f'{split}_dataloader'].dataset
        path, images = dataset_paths(dataset)
        key = (path, images)
        if key not in contents:
            contents[key] = None
            contents[key] = yield from _file_problems(path, images, dataset)
        if contents[key] is not None and split != 'train':
            yield from _evaluator_problems(config, split, contents[key])


def dataset_paths(dataset: ConfigDict) -> tuple[Path, Path]:
    """The annotation file and the folder of the images."""
    root = dataset.get('data_root') or ''
    return (Path(os.path.join(root, dataset.ann_file)),
            Path(os.path.join(root, dataset.data_prefix.img)))


def _file_problems(path: Path, images: Path, dataset: ConfigDict) -> Iterator[str]:
    """Check one annotation file and its images; return the file's content, None if unusable."""
    missing = [str(place.absolute()) for place in (path, images) if not place.exists()]
    if missing:
        yield (f'not found: {", ".join(missing)}. Give the folder of COCO 2017 by --data-root '
               '(README, "Data")')
        return None
    try:
        content = read_annotations(path)
        names = {image['file_name']: image['id'] for image in content['images']}
        categories = {category['name'] for category in content['categories']}
        annotated = {annotation['image_id'] for annotation in content['annotations']}
    except ValueError as error:
        yield str(error)
        return None
    except (KeyError, TypeError) as error:
        yield f"{path} is not a file of COCO's annotations: its annotations lack {error}"
        return None
    if not names or not annotated:
        yield f'{path} has {len(names)} images and {len(content["annotations"])} objects'
        return None

    present = set(os.listdir(images))
    absent = [name for name in names if name not in present]
    if absent:
        yield (f'{len(absent)} of the {len(names)} images of {path} are not in {images}, such as '
               f'{absent[0]}')
    renumbered = [name for name, id_ in names.items()
                  if len(Path(name).stem) == 12 and Path(name).stem.isdigit()
                  and int(Path(name).stem) != id_]
    if renumbered:
        yield (f'{path} has other image ids than COCO: {renumbered[0]} has the id '
               f'{names[renumbered[0]]} ({len(renumbered)} images)')
    strange = annotated - set(names.values())
    if strange:
        yield (f'{path} has objects of images that it does not list, such as image id '
               f'{min(strange)}')
    unknown = [name for name in dataset_classes(dataset) if name not in categories]
    if unknown:
        yield f'{path} lacks {len(unknown)} categories of the data set, such as {unknown[0]!r}'
    return content


def _evaluator_problems(config: Config, split: str, content: dict) -> Iterator[str]:
    name = f'{split}_evaluator'
    evaluator = config[name]
    if not isinstance(evaluator, dict) or evaluator.type != 'CocoMetric':
        yield f'{name} has to be one CocoMetric, found {evaluator}'
        return
    if evaluator.get('format_only'):
        yield f'{name}.format_only=True would give no AP: leave it out'
    indices = config[f'{split}_dataloader'].dataset.get('indices')
    if indices is not None:
        yield (f'{split}_dataloader.dataset.indices={indices} would count the objects of the other '
               'images as missed: give an annotation file of these images alone')
    path = Path(evaluator.ann_file)
    if not path.is_file():
        yield f'{name}.ann_file: {path} does not exist'
        return
    try:
        evaluated = {image['id'] for image in read_annotations(path)['images']}
    except ValueError as error:
        yield f'{name}.ann_file: {error}'
        return
    ids = {image['id'] for image in content['images']}
    if ids != evaluated:
        yield (f'{name}.ann_file: {path} has other image ids than the images that are tested: '
               f'{len(ids - evaluated)} of {len(ids)} tested images are not in it, '
               f'{len(evaluated - ids)} of its {len(evaluated)} are not tested')
