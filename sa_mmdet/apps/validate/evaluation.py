"""Whether COCO's evaluation can count what is predicted, on the images that are tested."""
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config, ConfigDict

from .annotations import read_annotations
from .config import Doubt, class_of, listed
from .dataset import Source

NEEDED = {'id': 'a number as id', 'segmentation': 'an outline as segmentation'}


def evaluators_of(config: Config, split: str) -> list[ConfigDict]:
    """Return the configs of the metrics of a split."""
    evaluators = config.get(f'{split}_evaluator') or []
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    return [evaluator for evaluator in evaluators if isinstance(evaluator, dict)]


def is_coco_metric(evaluator: object) -> bool:
    """Return whether an evaluator is MMDetection's ``CocoMetric``."""
    return (isinstance(evaluator, dict)
            and class_of(evaluator.get('type'), METRICS) is CocoMetric)


def evaluated_files(config: Config, split: str, tested: list[Source]
                    ) -> tuple[list[tuple[ConfigDict, Source]], list[str]]:
    """Return what each ``CocoMetric`` counts, and why some files cannot be read.

    Args:
        config: of a detector.
        split: 'val' or 'test'.
        tested: its data sets; the first one's classes are evaluated.

    Returns:
        The config of the metric, and the file that it reads with these classes.
    """
    files, problems = [], []
    for evaluator in filter(is_coco_metric, evaluators_of(config, split)):
        path = evaluator.get('ann_file')
        if not tested or '://' in str(path):
            continue
        try:
            read = dict(path=Path(path), annotations=read_annotations(Path(path))) if path else {}
        except ValueError as error:
            problems.append(f'{split}_evaluator.ann_file: {error}')
        else:
            files.append((evaluator, replace(tested[0], **read)))
    return files, problems


def evaluation_problems(evaluator: ConfigDict, counted: Source, tested: list[Source], name: str,
                        to_the_end: bool) -> Iterator[str]:
    """Yield where COCO's evaluation would stop, or count other images than those that are tested.

    Args:
        evaluator, counted: of ``evaluated_files``.
        tested: the data sets.
        name: of the evaluator in the config.
        to_the_end: refuse where only a part of the images is tested.
    """
    if evaluator.get('ann_file'):
        yield from _image_disagreements(counted, tested, name, to_the_end)
    if evaluator.get('format_only'):
        return
    if not counted.count('evaluated'):
        yield Doubt(f'{counted.path} has no objects of the classes to evaluate: every AP will be '
                    '-1')
    if evaluator.get('ann_file'):  # otherwise MMDetection writes one that has everything
        yield from _lacking(counted, evaluator.get('metric') or 'bbox')


def _image_disagreements(counted: Source, tested: list[Source], name: str, to_the_end: bool
                         ) -> Iterator[str]:
    images = dict(image for source in tested for image in source.images())
    file, path = counted.annotations.images, counted.path
    unknown = [id_ for id_ in images if id_ not in file]
    missed = [id_ for id_ in file if id_ not in images]
    other = [(image, file[id_][0]) for id_, (image, *_) in images.items()
             if id_ in file and Path(image).stem != Path(file[id_][0]).stem]
    if unknown or (missed and to_the_end):
        yield (f'{name}.ann_file: {path} has other image ids than the images that are tested: '
               f'{len(unknown)} of {len(images)} tested images are not in it, {len(missed)} of its '
               f'{len(file)} are not tested. Give the file of the data set')
    elif missed:
        yield Doubt(f'{name}.ann_file: {len(missed)} of the {len(file)} images of {path} are not '
                    'tested: their objects count as missed')
    if other:
        yield Doubt(f'{name}.ann_file: {path} has other images than the data set under the same '
                    f'ids, such as {other[0][1]} in place of {other[0][0]}')


def _lacking(counted: Source, metric: str | list[str]) -> Iterator[str]:
    metrics = [metric] if isinstance(metric, str) else metric
    needed = ['id', 'iscrowd', 'area', *(['bbox'] if metrics != ['segm'] else []),
              *(['segmentation'] if 'segm' in metrics else [])]
    for key in needed:
        if count := counted.count(f'no {key}'):
            yield (f'{counted.path} has {count} objects without {NEEDED.get(key, key)}, such as in '
                   f"the entry of {counted.example(f'no {key}')}, which COCO's evaluation of "
                   f'{listed(metrics)} needs: complete the file')


def benchmark_problem(config: Config, split: str) -> str | None:
    """Return why the results of a split could not be put beside the paper's."""
    name, evaluator = f'{split}_evaluator', config[f'{split}_evaluator']
    dataset = config[f'{split}_dataloader'].dataset
    if not is_coco_metric(evaluator) or not evaluator.get('ann_file'):
        return f'{name} has to be one CocoMetric with an ann_file, found {evaluator}'
    if evaluator.get('format_only'):
        return f'{name}.format_only=True would give no AP: leave it out'
    if dataset.get('indices') is not None:
        return (f'{split}_dataloader.dataset.indices={dataset.indices} would count the objects of '
                'the other images as missed: give an annotation file of these images alone')
    return None
