"""ImageNet-1k, evaluated from the saved top classes of each image."""
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ....environment import mmpretrain_problem
from ...validate.imagenet import (
    CLASSES,
    as_tuple,
    class_count,
    image_folder,
    imagenet_datasets,
    imagenet_problems,
    labelled_images,
)
from ..tables import METRICS, Row
from .base import SPLITS, Benchmark

VAL_NAMES = tuple(f'ILSVRC2012_val_{number:08d}.JPEG' for number in range(1, 50_001))
LOCATION = ('data_root', 'data_prefix', 'split', 'ann_file')  # keys of a data set's config
PREDICTIONS = 'predictions.json'
PERCENT_TOLERANCE = 1e-3  # half an image of 50,000


class ImageNet(Benchmark):
    """ImageNet-1k in MMPretrain's usual layout: top-1 and top-5 accuracy."""

    name = 'ImageNet'
    data_root = Path('data/imagenet')
    work_dir = Path('work_dirs/imagenet')
    scope = 'mmpretrain'
    dataset_keys = ('data_root', )
    bytes_of_predictions = {'accuracy': 10_000_000}

    def tasks(self, row: Row) -> tuple[str, ...]:
        return ('accuracy', )

    def place(self, config: Config, data_root: Path) -> None:
        for split in SPLITS:
            config[f'{split}_dataloader'].dataset.data_root = str(data_root)

    def save_predictions(self, config: Config, folder: Path) -> None:
        dump = dict(type='DumpTopPredictions', out_file=str(self.prediction_file(folder, '')),
                    root=str(image_folder(config.test_dataloader.dataset)))
        config.test_evaluator = [*as_tuple(config.test_evaluator), dump]

    def prediction_file(self, folder: Path, task: str) -> Path:
        return folder / PREDICTIONS

    def software_problem(self) -> str | None:
        return mmpretrain_problem()

    def data_problems(self, config: Config, splits: tuple[str, ...]) -> Iterator[str]:
        problems = list(_test_problems(config))
        yield from problems or imagenet_problems(config, splits)

    def describe(self, config: Config) -> dict:
        dataset = config.test_dataloader.dataset
        images, classes = labelled_images(dataset), class_count(dataset)
        folder = image_folder(dataset)
        is_val = classes == CLASSES and sorted(
            Path(image).name for image, _ in images) == list(VAL_NAMES)
        label = 'ImageNet val (50,000 images)' if is_val else (
            f'{len(images):,} images of {classes:,} classes in {folder.parent.name}, '
            'NOT ImageNet val')
        location = {key: dataset[key] for key in LOCATION if key in dataset}
        return dict(label=label, is_papers=is_val, images=len(images), classes=classes,
                    folder=str(folder), dataset=location, sha256=_digest(images))

    def change(self, evaluated_on: dict) -> str | None:
        folder = Path(evaluated_on['folder'])
        if not folder.is_dir():
            return f'{folder} no longer exists: restore it, or make a link, to run --check'
        if _digest(labelled_images(evaluated_on['dataset'])) != evaluated_on['sha256']:
            return (f'the images or classes in {folder} have changed since the evaluation: the '
                    'SHA-256 of their list differs')
        return None

    def evaluate(self, evaluated_on: dict, predictions: Path, task: str) -> dict[str, float]:
        return evaluate_predictions(dict(labelled_images(evaluated_on['dataset'])), predictions)

    def logged(self, task: str) -> dict[str, str]:
        return {metric: f'accuracy/{metric}' for metric in METRICS[task]}

    def is_as_logged(self, value: float, logged: float) -> bool:
        return abs(100 * value - logged) <= PERCENT_TOLERANCE


def _test_problems(config: Config) -> Iterator[str]:
    """Yield why a test's predictions could not be evaluated, which would show only at its end."""
    dataset = config.test_dataloader.dataset
    if list(imagenet_datasets(dataset)) != [dataset]:
        yield ("test_dataloader.dataset must be MMPretrain's ImageNet, on this machine, got "
               f'{dataset.get("type")}')
    if dataset.get('split') == 'test':
        yield "test_dataloader.dataset.split='test' has no labels: set split='val'"
    if dataset.get('indices') is not None:
        yield (f'test_dataloader.dataset.indices={dataset.indices} would count the other images as '
               'missed: use a folder, or a meta/val.txt, with only these images')
    accuracy = config.test_evaluator[0]
    if (accuracy.get('type') != 'Accuracy' or not {1, 5} <= set(as_tuple(accuracy.get('topk')))
            or accuracy.get('thrs', 0.) != 0):
        yield ("test_evaluator must be MMPretrain's Accuracy with topk=(1, 5) and no thrs, got "
               f'{accuracy}')


def evaluate_predictions(labels: dict[str, int], predictions: Path) -> dict[str, float]:
    """Return the top-1 and top-5 accuracy of a file that ``DumpTopPredictions`` wrote.

    Args:
        labels: labels by image path, as in the folder.
        predictions: the file. Its own labels must be the same.

    Returns:
        'top1' and 'top5', in [0, 1].

    Raises:
        ValueError: The file doesn't have each of these images once, with its label.
    """
    found = json.loads(predictions.read_text())
    told = {entry['image']: entry['label'] for entry in found}
    if len(told) != len(found) or told != labels:
        wrong = [image for image in {**labels, **told} if labels.get(image) != told.get(image)]
        raise ValueError(f'{predictions} has {len(found)} predictions for {len(labels)} images, '
                         f'{len(wrong)} of them missing, unknown or of another class, such as '
                         f'{min(wrong, default="an image that appears twice")}')
    return {metric: sum(entry['label'] in entry['classes'][:count] for entry in found) / len(found)
            for metric, count in (('top1', 1), ('top5', 5))}


def _digest(images: list[tuple[str, int]]) -> str:
    lines = '\n'.join(f'{path} {label}' for path, label in sorted(images))
    return hashlib.sha256(lines.encode()).hexdigest()
