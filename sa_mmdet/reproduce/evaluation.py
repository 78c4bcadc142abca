"""COCO AP from saved detections, by pycocotools alone."""
import contextlib
import hashlib
import io
import json
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..analysis.paper import METRICS

LOGGED = {'AP': 'mAP', 'AP50': 'mAP_50', 'AP75': 'mAP_75', 'APs': 'mAP_s', 'APm': 'mAP_m',
          'APl': 'mAP_l'}
TOLERANCE = 1e-6


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
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        truth = COCO(str(annotations))
        found = json.loads(detections.read_text())
        if not found:
            return dict.fromkeys(METRICS, 0.)
        if task == 'segm':
            for detection in found:  # a box would take the place of the mask's own area
                detection.pop('bbox', None)
        evaluation = COCOeval(truth, truth.loadRes(found), task)
        evaluation.params.catIds = truth.getCatIds(catNms=classes)
        evaluation.params.maxDets = [100, 300, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, map(float, evaluation.stats[:6]), strict=True))


def differs_from_log(metrics: dict[str, float], logged: dict[str, float], task: str) -> list[str]:
    """The metrics that are not what the run logged, which has three decimals."""
    return [f'{task} {name} is {value:.6f}, logged {logged[f"coco/{task}_{LOGGED[name]}"]}'
            for name, value in metrics.items()
            if abs(round(value, 3) - logged[f'coco/{task}_{LOGGED[name]}']) > TOLERANCE]


def check_result(result: dict, folder: Path) -> list[str]:
    """Evaluate a finished run's detections again.

    Args:
        result: the content of its result.json.
        folder: where its files are.

    Returns:
        What is wrong, nothing if the files and every AP are as they were.
    """
    problems = []
    evaluated = result['evaluated_on']
    annotations = Path(evaluated['annotations'])
    if not annotations.is_file():
        return [f'{annotations} does not exist any more: give it back, or a link, to check']
    if sha256(annotations) != evaluated['sha256']:
        return [f'{annotations} is not the file that was evaluated on: its SHA-256 differs']
    for task, saved in result['detections'].items():
        path = folder / saved['file']
        if not path.is_file():
            problems.append(f'{path} does not exist')
            continue
        if sha256(path) != saved['sha256']:
            problems.append(f'{path} was changed after it was evaluated: its SHA-256 differs')
        try:
            metrics = evaluate_detections(annotations, path, task, evaluated['classes'])
        except Exception as error:  # a changed file can be wrong in any way
            problems.append(f'{path} cannot be evaluated: {error!r}')
            continue
        problems += [f'{task} {name} is {metrics[name]:.6f}, reported {value:.6f}'
                     for name, value in result['metrics'][task].items()
                     if abs(metrics[name] - value) > TOLERANCE]
        if result['logged']:
            problems += differs_from_log(metrics, result['logged'], task)
    return problems


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
