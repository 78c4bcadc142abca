import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from pycocotools.coco import COCO

from sa_mmdet.apps.paper.benchmarks.coco import LOGGED, Coco, evaluate_detections
from sa_mmdet.apps.paper.tables import METRICS
from sa_mmdet.checkpoint.files import sha256


@pytest.fixture
def finished(tmp_path, coco_root):
    """The folder and the result of a run whose detector finds most objects, not quite in place."""
    annotations = coco_root / 'annotations/instances_val2017.json'
    metric = CocoMetric(str(annotations), ['bbox', 'segm'],
                        outfile_prefix=str(tmp_path / 'detections'))
    truth = COCO(str(annotations))
    metric.dataset_meta = dict(classes=[c['name'] for c in truth.dataset['categories']])
    metric.process({}, list(_noisy_detections(truth)))
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


@pytest.mark.parametrize('task', ['bbox', 'segm'])
def test_ap_is_what_mmdetection_logs(finished, task):
    _, result = finished
    metrics = result['metrics'][task]
    assert list(metrics) == list(METRICS[task])
    for name, value in metrics.items():
        logged = result['logged'][f'coco/{task}_{LOGGED[name]}']
        assert round(value, 3) == pytest.approx(logged, abs=1e-9)
    assert 0.1 < metrics['AP'] < 0.9
    assert len(set(metrics.values())) > 3


@pytest.mark.parametrize('change', [
    lambda detections: detections[0].update(score=detections[0]['score'] + 1e-3),
    lambda detections: detections[0].update(category_id=90),
    lambda detections: detections.pop(),
    lambda detections: detections.append(dict(detections[0], image_id=1)),
    lambda detections: detections.clear(),
], ids=['score', 'class', 'removed', 'other image', 'empty'])
def test_one_changed_detection_is_found(finished, change):
    folder, result = finished
    path = folder / 'detections.bbox.json'
    detections = json.loads(path.read_text())
    change(detections)
    path.write_text(json.dumps(detections))
    problems = Coco().check_result(result, folder)
    assert any('was changed after it was evaluated' in problem for problem in problems)


def test_another_ap_is_found(finished):
    folder, result = finished
    assert Coco().check_result(result, folder) == []
    result['metrics']['segm']['AP75'] += 2e-6
    problem, = Coco().check_result(result, folder)
    assert 'segm AP75' in problem
    assert 'reported' in problem


def test_another_logged_ap_is_found(finished):
    folder, result = finished
    result['logged']['coco/bbox_mAP'] += 0.001
    problem, = Coco().check_result(result, folder)
    assert 'bbox AP is' in problem
    assert 'logged' in problem


def test_missing_files_are_found(finished):
    folder, result = finished
    (folder / 'detections.segm.json').unlink()
    problem, = Coco().check_result(result, folder)
    assert problem.endswith('detections.segm.json does not exist')
    result['evaluated_on']['sha256'] = '0'
    assert 'SHA-256 differs' in Coco().check_result(result, folder)[0]
    result['evaluated_on']['annotations'] = 'gone.json'
    assert 'gone.json no longer exists' in Coco().check_result(result, folder)[0]


def test_no_detections_is_an_ap_of_zero(finished):
    folder, result = finished
    (folder / 'none.json').write_text('[]')
    metrics = evaluate_detections(Path(result['evaluated_on']['annotations']), folder / 'none.json',
                                  'bbox', result['evaluated_on']['classes'])
    assert set(metrics.values()) == {0.}
