"""Check that COCO's evaluation can count the predictions on the tested images."""
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mmdet.datasets.transforms import PackDetInputs
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS, TRANSFORMS
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import EVALUATOR

from .annotations import read_annotations
from .config import Doubt, class_of, dicts_below, listed
from .dataset import Source

NEEDED = {'id': 'a numeric id', 'segmentation': 'an outline in segmentation'}


@dataclass(frozen=True)
class Counted:
    """What a ``CocoMetric`` counts: its own file, or what the data set reads.

    Attributes:
        metric: the metric's config.
        source: the file, with the evaluated classes.
        own_file: whether the metric names the file.
    """

    metric: ConfigDict
    source: Source
    own_file: bool

    @property
    def labels(self) -> int:
        """Return the number of labels that predictions may have."""
        return len(self.source.names if self.own_file else self.source.classes)


def evaluators_of(config: Config, split: str) -> list[ConfigDict]:
    """Return the metric configs of a split."""
    evaluators = config.get(f'{split}_evaluator') or []
    if isinstance(evaluators, dict) and 'metrics' in evaluators:
        if class_of(evaluators.get('type', Evaluator), EVALUATOR) is not Evaluator:
            return []  # such as one with a metric per data set
        evaluators = evaluators['metrics']
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    return [evaluator for evaluator in evaluators if isinstance(evaluator, dict)]


def annotation_file(evaluator: ConfigDict) -> Path | None:
    """Return the file on this machine that a metric reads, or None."""
    path = evaluator.get('ann_file')
    return Path(path) if isinstance(path, str | os.PathLike) and '://' not in str(path) else None


def is_coco_metric(evaluator: object) -> bool:
    """Return whether an evaluator is MMDetection's ``CocoMetric``."""
    return (isinstance(evaluator, dict)
            and class_of(evaluator.get('type'), METRICS) is CocoMetric)


def counted_files(config: Config, split: str, tested: list[Source]
                  ) -> tuple[list[Counted], list[str]]:
    """Return what each ``CocoMetric`` of a split counts, and why some files cannot be read.

    Args:
        config: the config of a detector.
        split: 'val' or 'test'.
        tested: the data sets of the split; the classes of the first are evaluated.
    """
    counted, problems = [], []
    for evaluator in filter(is_coco_metric, evaluators_of(config, split)):
        if not evaluator.get('ann_file'):
            counted += [Counted(evaluator, source, own_file=False) for source in tested[:1]]
            continue
        path = annotation_file(evaluator)
        if not tested or path is None:
            continue
        try:
            annotations = read_annotations(path)
        except ValueError as error:
            problems.append(f'{split}_evaluator.ann_file: {error}')
            continue
        if evaluator.get('sort_categories'):
            annotations = replace(annotations, categories=sorted(annotations.categories))
        whole = ConfigDict(metainfo=tested[0].config.get('metainfo'))  # no image is left out
        source = replace(tested[0], config=whole, path=path, annotations=annotations)
        counted.append(Counted(evaluator, source, own_file=True))
    return counted, problems


def evaluation_problems(counted: Counted, tested: list[Source], name: str, as_benchmark: bool
                        ) -> Iterator[str]:
    """Yield why COCO's evaluation would fail, or count other images than the tested ones.

    Args:
        counted: from ``counted_files``.
        tested: the data sets.
        name: the name of the evaluator in the config.
        as_benchmark: refuse a test of only some of the images.
    """
    source = counted.source
    if counted.own_file:
        yield from _image_disagreements(source, tested, name, as_benchmark)
    elif not _are_passed_on(source):
        yield (f'{name} has no ann_file, and the data set passes no objects to it: set '
               f"{name}.ann_file={source.path}, or add 'instances' to the meta_keys of "
               'PackDetInputs')
    if counted.metric.get('format_only') or not source.names:
        return
    if not source.having('evaluated'):
        yield Doubt(f'{source.path} has no objects of the evaluated classes: every AP will be '
                    '-1')
    told = source.annotations.unreadable and source.path in {data.path for data in tested}
    if counted.own_file and not told:
        yield from _lacking(source, counted.metric.get('metric') or 'bbox')


def _are_passed_on(source: Source) -> bool:
    """Return whether a data set's pipeline passes its objects to the metric."""
    packing = [step for step in dicts_below(source.config.get('pipeline'))
               if class_of(step.get('type'), TRANSFORMS) is PackDetInputs]
    return all('instances' in step.get('meta_keys', ()) for step in packing)


def _image_disagreements(counted: Source, tested: list[Source], name: str, as_benchmark: bool
                         ) -> Iterator[str]:
    images = {id_: image for source in tested for id_, (image, *_) in source.images.items()}
    file, path = counted.annotations.images, counted.path
    unknown = [id_ for id_ in images if id_ not in file]
    missed = [id_ for id_ in file if id_ not in images]
    other = [(image, file[id_][0]) for id_, image in images.items()
             if id_ in file and Path(image).stem != Path(file[id_][0]).stem]
    if unknown or (missed and as_benchmark):
        yield (f'{name}.ann_file: {path} has other image ids than the tested images: '
               f'{len(unknown)} of {len(images)} tested images are not in it, and {len(missed)} of '
               f'its {len(file)} are not tested. Give the annotation file of the data set')
    elif missed:
        yield Doubt(f'{name}.ann_file: {len(missed)} of the {len(file)} images in {path} are not '
                    'tested: their objects count as missed')
    if other:
        yield Doubt(f'{name}.ann_file: {path} has other images than the data set under the same '
                    f'ids, such as {other[0][1]} instead of {other[0][0]}')


def _lacking(source: Source, metric: str | list[str]) -> Iterator[str]:
    metrics = [metric] if isinstance(metric, str) else metric
    needed = ['id', 'iscrowd', 'area', *(['bbox'] if metrics != ['segm'] else []),
              *(['segmentation'] if 'segm' in metrics else [])]
    for key in needed:
        if found := source.having(f'no {key}'):
            yield (f'{source.path} has {len(found)} objects without {NEEDED.get(key, key)}, such '
                   f"as in the entry of {source.annotations.images[found[0]][0]}. COCO's "
                   f'evaluation of {listed(metrics)} needs it: complete the file')
    if source.having('id 0'):
        yield Doubt(f'{source.path} has an object with the id 0. pycocotools treats that as no '
                    'match, so the object counts as missed: number the objects from 1')


def benchmark_problem(config: Config, split: str) -> str | None:
    """Return why the results of a split cannot be compared with the paper's, or None."""
    name, evaluator = f'{split}_evaluator', config.get(f'{split}_evaluator')
    dataset = (config.get(f'{split}_dataloader') or {}).get('dataset') or {}
    if not is_coco_metric(evaluator) or not evaluator.get('ann_file'):
        return f'{name} must be a single CocoMetric with an ann_file, found {evaluator}'
    if evaluator.get('format_only'):
        return f'{name}.format_only=True gives no AP: leave it out'
    if dataset.get('indices') is not None:
        return (f'{split}_dataloader.dataset.indices={dataset.indices} makes the objects '
                'of other images count as missed: give an annotation file of these images only')
    return None
