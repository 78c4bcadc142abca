"""Detections that a test saved, beside the ground truth, without the detector."""
import json
from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ..visualize.predictions import GAP, draw_predictions, read_image
from .benchmarks.coco import ground_truth


def draw_detections(annotations: Path, images: Path, detections: Path, meta: dict,
                    threshold: float = 0.3, count: int = 3) -> np.ndarray:
    """Draw the first images of a data set that have objects, one below the other.

    Args:
        annotations: COCO's annotation file.
        images: the folder of the images.
        detections: COCO's result file, as CocoMetric dumps it, of boxes or of masks.
        meta: of the data set: 'classes', in the order of labels, and their colours in 'palette'.
        threshold: the score from which a detection is drawn.
        count: images at most.

    Returns:
        (height, width, 3) uint8, RGB: ground truth left, detections right, best on top.

    Raises:
        ConfigError: an image is damaged.
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
        information = truth.imgs[id_]
        objects = [_object(truth, o) for o in truth.imgToAnns[id_] if o['category_id'] in labels]
        best = sorted(found[id_], key=lambda detection: -detection['score'])
        sample = DetDataSample(
            gt_instances=_instances(objects, labels, information),
            pred_instances=_instances(best, labels, information))
        sample.pred_instances.scores = torch.tensor([detection['score'] for detection in best])
        image = read_image(images / information['file_name'])
        rows.append(draw_predictions(image, sample, meta, threshold))
    return _below(rows)


def _object(truth: COCO, annotation: dict) -> dict:
    """Class and box of an annotation, and its mask as run lengths if it has one."""
    mask = dict(segmentation=truth.annToRLE(annotation)) if annotation.get('segmentation') else {}
    return dict(category_id=annotation['category_id'], bbox=annotation['bbox'], **mask)


def _instances(objects: list[dict], labels: dict[int, int], image: dict) -> InstanceData:
    """COCO's objects, or its detections, as MMDetection has them."""
    boxes = torch.tensor([o['bbox'] for o in objects]).reshape(-1, 4)
    instances = InstanceData(
        bboxes=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
        labels=torch.tensor([labels[o['category_id']] for o in objects], dtype=torch.long))
    if objects and all('segmentation' in o for o in objects):
        masks = np.stack([coco_mask.decode(o['segmentation']) for o in objects])
        instances.masks = BitmapMasks(masks, image['height'], image['width'])
    return instances


def _below(rows: list[np.ndarray]) -> np.ndarray:
    """Pictures one below the other, on white."""
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255)
              for row in rows]
    return np.concatenate(padded)[:-GAP]
