import json
from pathlib import Path

import pytest

from sa_mmdet.apps.paper.benchmarks.coco import LOGGED, Coco, evaluate_detections
from sa_mmdet.apps.paper.tables import METRICS


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


def test_a_finished_run_checks(finished):
    folder, result = finished
    assert Coco().check_result(result, folder) == []


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
    assert 'gone.json does not exist' in Coco().check_result(result, folder)[0]


def test_no_detections_is_an_ap_of_zero(finished):
    folder, result = finished
    (folder / 'none.json').write_text('[]')
    metrics = evaluate_detections(Path(result['evaluated_on']['annotations']), folder / 'none.json',
                                  'bbox', result['evaluated_on']['classes'])
    assert set(metrics.values()) == {0.}
