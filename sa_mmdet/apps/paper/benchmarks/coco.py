"""COCO 2017, evaluated by pycocotools from saved detections."""
import contextlib
import copy
import io
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ....checkpoint.files import sha256
from ...validate.coco import coco_problems, dataset_meta, read_annotations
from ..tables import METRICS, Row
from .base import SPLITS, TOLERANCE, Benchmark

# COCO val2017: https://cocodataset.org, annotations of 2017
VAL2017 = dict(images=5000, objects=36781, categories=80)
DETECTIONS = 'detections'  # beginning of the names of the files
LOGGED = {'AP': 'mAP', 'AP50': 'mAP_50', 'AP75': 'mAP_75', 'APs': 'mAP_s', 'APm': 'mAP_m',
          'APl': 'mAP_l'}


class Coco(Benchmark):
    """COCO 2017 in MMDetection's usual layout: AP of boxes, and of masks where there are any."""

    name = 'COCO'
    data_root = Path('data/coco')
    work_dir = Path('work_dirs/reproduce')
    scope = 'mmdet'
    dataset_keys = ('ann_file', 'data_prefix')
    bytes_of_predictions = {'bbox': 100_000_000, 'segm': 300_000_000}

    def tasks(self, row: Row) -> tuple[str, ...]:
        return ('bbox', 'segm') if row.detector == 'Mask R-CNN' else ('bbox', )

    def place(self, config: Config, data_root: Path) -> None:
        for split in SPLITS:
            config[f'{split}_dataloader'].dataset.data_root = f'{data_root}/'
        for split in SPLITS[1:]:
            evaluator = copy.deepcopy(config[f'{split}_evaluator'])
            annotations = config[f'{split}_dataloader'].dataset.ann_file
            evaluator.ann_file = str(data_root / annotations)
            config[f'{split}_evaluator'] = evaluator

    def save_predictions(self, config: Config, folder: Path) -> None:
        if isinstance(config.test_evaluator, dict):
            config.test_evaluator.outfile_prefix = str(folder / DETECTIONS)

    def prediction_file(self, folder: Path, task: str) -> Path:
        return folder / f'{DETECTIONS}.{task}.json'

    def data_problems(self, config: Config, splits: tuple[str, ...]) -> Iterator[str]:
        return coco_problems(config, splits, to_the_end=True)

    def describe(self, config: Config) -> dict:
        path = Path(config.test_evaluator.ann_file)
        annotations = read_annotations(path)
        found = dict(images=len(annotations.images), objects=annotations.objects,
                     categories=len(annotations.categories))
        classes = list(dataset_meta(config.test_dataloader.dataset)['classes'])
        is_val2017 = found == VAL2017 and len(classes) == VAL2017['categories']
        label = 'COCO val2017 (5,000 images)' if is_val2017 else (
            f'{found["images"]:,} images of {path.name} in {path.parent.parent.name}, '
            'NOT COCO val2017')
        return dict(
            label=label, is_papers=is_val2017, images=found['images'], objects=found['objects'],
            annotations=str(path), sha256=annotations.sha256, classes=classes)

    def change(self, evaluated_on: dict) -> str | None:
        annotations = Path(evaluated_on['annotations'])
        if not annotations.is_file():
            return f'{annotations} does not exist any more: give it back, or a link, to check'
        if sha256(annotations) != evaluated_on['sha256']:
            return f'{annotations} is not the file that was evaluated on: its SHA-256 differs'
        return None

    def evaluate(self, evaluated_on: dict, predictions: Path, task: str) -> dict[str, float]:
        return evaluate_detections(
            Path(evaluated_on['annotations']), predictions, task, evaluated_on['classes'])

    def logged(self, task: str) -> dict[str, str]:
        return {metric: f'coco/{task}_{name}' for metric, name in LOGGED.items()}

    def is_as_logged(self, value: float, logged: float) -> bool:
        return abs(round(value, 3) - logged) <= TOLERANCE


def ground_truth(annotations: Path) -> COCO:
    """Return COCO's annotations as pycocotools has them; read once, until the file changes."""
    return _read(annotations, annotations.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read(annotations: Path, _: int) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        return COCO(str(annotations))


def evaluate_detections(annotations: Path, detections: Path, task: str,
                        classes: list[str]) -> dict[str, float]:
    """COCO AP of a file of detections, as MMDetection's CocoMetric evaluates them.

    Args:
        annotations: COCO's annotation file.
        detections: COCO's result file, as CocoMetric dumps it.
        task: 'bbox' or 'segm'.
        classes: names of the categories to count.

    Returns:
        AP, AP50, AP75, APs, APm, APl in [0, 1]; -1 where there are no objects of a size.
    """
    truth = ground_truth(annotations)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        found = json.loads(detections.read_text())
        if not found:
            return dict.fromkeys(METRICS[task], 0.)
        if task == 'segm':
            for detection in found:  # a box would take the place of the mask's own area
                detection.pop('bbox', None)
        evaluation = COCOeval(truth, truth.loadRes(found), task)
        evaluation.params.catIds = truth.getCatIds(catNms=classes)
        evaluation.params.maxDets = [100, 300, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS[task], map(float, evaluation.stats[:6]), strict=True))
