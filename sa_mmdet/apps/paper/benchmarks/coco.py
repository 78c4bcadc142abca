"""COCO 2017: evaluate saved detections with pycocotools, and draw them."""
import contextlib
import copy
import io
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ....checkpoint.files import sha256
from ...validate.annotations import has_outline, read_annotations
from ...validate.coco import coco_problems
from ...validate.dataset import dataset_meta
from ...visualize.predictions import GAP, draw_predictions, read_image
from ..tables import METRICS, Row
from .base import SPLITS, TOLERANCE, Benchmark

# COCO val2017: https://cocodataset.org, annotations of 2017
VAL2017 = dict(images=5000, objects=36781, categories=80)
DETECTIONS = 'detections'  # prefix of the file names
LOGGED = {'AP': 'mAP', 'AP50': 'mAP_50', 'AP75': 'mAP_75', 'APs': 'mAP_s', 'APm': 'mAP_m',
          'APl': 'mAP_l'}


class Coco(Benchmark):
    """COCO 2017 in MMDetection's usual layout: AP of boxes, and of masks if there are any."""

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
        return coco_problems(config, splits, as_benchmark=True)

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
            return f'{annotations} no longer exists: restore it, or make a link, to run --check'
        if sha256(annotations) != evaluated_on['sha256']:
            return f'{annotations} has changed since the evaluation: its SHA-256 differs'
        return None

    def evaluate(self, evaluated_on: dict, predictions: Path, task: str) -> dict[str, float]:
        return evaluate_detections(
            Path(evaluated_on['annotations']), predictions, task, evaluated_on['classes'])

    def logged(self, task: str) -> dict[str, str]:
        return {metric: f'coco/{task}_{name}' for metric, name in LOGGED.items()}

    def is_as_logged(self, value: float, logged: float) -> bool:
        return abs(round(value, 3) - logged) <= TOLERANCE


def ground_truth(annotations: Path) -> COCO:
    """Return COCO's annotations as pycocotools loads them; read again only if the file changes."""
    return _read(annotations, annotations.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read(annotations: Path, _: int) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        return COCO(str(annotations))


def evaluate_detections(annotations: Path, detections: Path, task: str,
                        classes: list[str]) -> dict[str, float]:
    """Return the COCO AP of saved detections, evaluated as in MMDetection's CocoMetric.

    Args:
        annotations: COCO annotation file.
        detections: COCO result file, as CocoMetric dumps it.
        task: 'bbox' or 'segm'.
        classes: names of the categories to count.

    Returns:
        AP, AP50, AP75, APs, APm, APl in [0, 1]; -1 if there are no objects of that size.
    """
    truth = ground_truth(annotations)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        found = json.loads(detections.read_text())
        if not found:
            return dict.fromkeys(METRICS[task], 0.)
        if task == 'segm':
            for detection in found:  # with a box, pycocotools would ignore the mask's own area
                detection.pop('bbox', None)
        evaluation = COCOeval(truth, truth.loadRes(found), task)
        evaluation.params.catIds = truth.getCatIds(catNms=classes)
        evaluation.params.maxDets = [100, 300, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS[task], map(float, evaluation.stats[:6]), strict=True))


def draw_detections(annotations: Path, images: Path, detections: Path, meta: dict,
                    threshold: float = 0.3, count: int = 3) -> np.ndarray:
    """Draw the first images of a data set that have objects, one below the other.

    Args:
        annotations: COCO annotation file.
        images: folder of the images.
        detections: COCO result file of boxes or masks, as CocoMetric dumps it.
        meta: 'classes' of the data set in the order of labels, and their colours in 'palette'.
        threshold: lowest score of the detections that are drawn.
        count: maximum number of images.

    Returns:
        (height, width, 3) uint8, RGB: ground truth on the left, detections on the right, the best
        drawn over the others.

    Raises:
        ConfigError: An image is damaged.
    """
    truth = ground_truth(annotations)
    labels = {id_: meta['classes'].index(category['name'])
              for id_, category in truth.cats.items() if category['name'] in meta['classes']}
    chosen = sorted(image for image, objects in truth.imgToAnns.items()
                    if objects and image in truth.imgs)[:count]
    found = {image: [] for image in chosen}
    for detection in json.loads(detections.read_text()):
        if detection['image_id'] in found:
            found[detection['image_id']].append(detection)
    rows = []
    for id_ in chosen:
        image = read_image(images / truth.imgs[id_]['file_name'])
        objects = [_object(truth, o) for o in truth.imgToAnns[id_] if o['category_id'] in labels]
        best = sorted(found[id_], key=lambda detection: -detection['score'])
        sample = DetDataSample(
            gt_instances=_instances(objects, labels, image),
            pred_instances=_instances(best, labels, image))
        sample.pred_instances.scores = torch.tensor([detection['score'] for detection in best])
        rows.append(draw_predictions(image, sample, meta, threshold))
    return _below(rows)


def _object(truth: COCO, annotation: dict) -> dict:
    """Return class and box of an annotation, and its mask as run lengths if it has one."""
    mask = dict(segmentation=truth.annToRLE(annotation)) if has_outline(annotation) else {}
    return dict(category_id=annotation['category_id'], bbox=annotation['bbox'], **mask)


def _instances(objects: list[dict], labels: dict[int, int], image: np.ndarray) -> InstanceData:
    """Return COCO objects or detections as MMDetection's; masks only if all fit the image."""
    boxes = torch.tensor([o['bbox'] for o in objects]).reshape(-1, 4)
    instances = InstanceData(
        bboxes=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
        labels=torch.tensor([labels[o['category_id']] for o in objects], dtype=torch.long))
    masks = [coco_mask.decode(o['segmentation']) for o in objects if 'segmentation' in o]
    if objects and [mask.shape for mask in masks] == [image.shape[:2]] * len(objects):
        instances.masks = BitmapMasks(np.stack(masks), *image.shape[:2])
    return instances


def _below(rows: list[np.ndarray]) -> np.ndarray:
    """Stack pictures one below the other, on white."""
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255)
              for row in rows]
    return np.concatenate(padded)[:-GAP]
