import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from pycocotools.coco import COCO

from coco import CONFIGS, small_coco
from sa_mmdet.apps.paper.benchmarks.coco import evaluate_detections
from sa_mmdet.apps.paper.runs import Settings
from sa_mmdet.checkpoint.files import sha256


@pytest.fixture
def coco_root(tmp_path, coco_tiny):
    return small_coco(coco_tiny, tmp_path / 'coco', images=3)


@pytest.fixture
def settings(tmp_path, coco_root, monkeypatch):
    """Settings of a work dir that could be run on this machine, on a disk of 1 TB."""
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=10**12))
    return Settings(root=CONFIGS.parent, work_dir=tmp_path / 'work', data_root=coco_root,
                    cfg_options={'model.backbone.init_cfg': None})


@pytest.fixture
def finished(tmp_path, coco_root):
    """The folder and the result of a run whose detector finds most objects, not quite in place."""
    annotations = coco_root / 'annotations/instances_val2017.json'
    metric = CocoMetric(str(annotations), ['bbox', 'segm'],
                        outfile_prefix=str(tmp_path / 'detections'))
    metric.dataset_meta = dict(classes=[c['name'] for c in COCO(str(annotations)).dataset[
        'categories']])
    metric.process({}, list(_noisy_detections(COCO(str(annotations)))))
    logged = metric.evaluate(3)
    result = dict(
        row='mask-rcnn_sa-r50', seed=0, logged=logged, metrics={}, predictions={},
        evaluated_on=dict(annotations=str(annotations), sha256=sha256(annotations),
                          classes=metric.dataset_meta['classes']))
    for task in ('bbox', 'segm'):
        path = tmp_path / f'detections.{task}.json'
        result['metrics'][task] = evaluate_detections(
            annotations, path, task, metric.dataset_meta['classes'])
        result['predictions'][task] = dict(file=path.name, sha256=sha256(path))
    return tmp_path, result


def _noisy_detections(truth: COCO):
    generator = np.random.default_rng(0)
    labels = {category: label for label, category in enumerate(truth.getCatIds())}
    for image in truth.dataset['images']:
        objects = truth.imgToAnns[image['id']]
        x, y, w, h = np.array([o['bbox'] for o in objects]).T
        boxes = np.stack([x, y, x + w, y + h], 1) + generator.normal(0, 4, (len(x), 4))
        masks = np.stack([truth.annToMask(o) for o in objects])
        yield dict(
            img_id=image['id'], ori_shape=(image['height'], image['width']),
            pred_instances=dict(
                bboxes=torch.tensor(boxes),
                scores=torch.tensor(generator.uniform(size=len(x))),
                labels=torch.tensor([labels[o['category_id']] for o in objects]),
                masks=torch.tensor(np.roll(masks, 3, axis=2))))
