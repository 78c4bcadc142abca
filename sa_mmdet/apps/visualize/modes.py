"""What tools/visualize.py draws: predict, cam, gates and groups."""
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from ...checkpoint.files import write_atomically
from ..validate.config import ConfigError
from .cams import draw_cams
from .detector import Detector, find_layer
from .gates import attention_gates, draw_gates, draw_spatial_gates, short_name
from .grad_cam import Target, box_target, class_target, compute_grad_cam
from .groups import check_groups, draw_groups, group_scores
from .page import Drawing, Section
from .pictures import Picture, pictures_of_files, predict
from .predictions import draw_predictions, encode, knows_truth

LEAST_WIDTH = 600  # pixels of an image on the page
MOST_TARGETS = 2  # if none is asked for


@dataclass(frozen=True)
class Options:
    """What to draw, with which detector.

    Attributes:
        detector: the detector.
        threshold: lowest score that counts as a detection.
        layer: name of the layer, for cam and groups.
        labels: labels of the classes whose scores to explain.
        boxes: numbers of the detections whose scores to explain.
        other: a second detector, for cam.
    """

    detector: Detector
    threshold: float
    layer: str | None = None
    labels: list[int] | None = None
    boxes: list[int] | None = None
    other: Detector | None = None


# A mode yields drawings, and sentences that say what it cannot draw.
Mode = Callable[[Options, Picture], Iterator[Drawing | str]]


def check_options(mode: str, options: Options) -> None:
    """Raise ConfigError unless each detector has the layer, and both have the same classes."""
    if mode == 'groups':
        check_groups(options.detector.model, options.layer)
    for detector in filter(None, (options.detector, options.other)):
        if options.layer:
            find_layer(detector.model, options.layer)
    if options.other:
        classes, others = (list(detector.model.dataset_meta['classes'])
                           for detector in (options.detector, options.other))
        if classes != others:
            raise ConfigError(f'--compare: {options.other.name} has other classes ({len(others)}: '
                              f'{", ".join(others[:3])}, ...) than {options.detector.name} '
                              f'({len(classes)}: {", ".join(classes[:3])}, ...): use two '
                              'detectors of the same data set')


def draw_sections(mode: str, options: Options, pictures: Iterable[Picture],
                  folder: Path) -> list[Section]:
    """Draw all pictures in one of the four ``MODES``, and write each PNG when it is done.

    Raises:
        ConfigError: The model does not have what was asked for.
    """
    names = set()
    return [_draw_section(MODES[mode], options, picture, folder, names) for picture in pictures]


def _draw_section(mode: Mode, options: Options, picture: Picture, folder: Path,
                  names: set[str]) -> Section:
    print(picture.path, flush=True)
    drawings, remarks = [], []
    for result in mode(options, picture):
        if isinstance(result, str):
            remarks.append(result)
            print(f'  {result}', flush=True)
        else:
            result = replace(result, name=_unused(result.name, names))
            drawings.append(result)
            path = folder / f'{result.name}.png'
            write_atomically(path, result.png)
            print(f'  {path}', flush=True)
    return Section(picture.path.name, drawings, remarks)


def _unused(name: str, names: set[str]) -> str:
    """Return a name that is not in ``names``, and add it: images may have the same name."""
    numbered = (f'{name}_{number}' for number in itertools.count(2))
    unused = next(other for other in itertools.chain([name], numbered) if other not in names)
    names.add(unused)
    return unused


def predict_mode(options: Options, picture: Picture) -> Iterator[Drawing | str]:
    """Yield predictions, next to the ground truth if it is known."""
    model, name = options.detector.model, options.detector.name
    sample = predict(model, picture)
    drawn = draw_predictions(picture.image, sample, model.dataset_meta, options.threshold,
                             numbered=True)
    count = int((sample.pred_instances.scores >= options.threshold).sum())
    truth = f'Left: ground truth, {len(sample.gt_instances)} objects. Right: ' if knows_truth(
        sample) else ''
    caption = f'{truth}{name}, {count} detections with a score of at least {options.threshold}'
    if count:
        caption += f': {_listed(sample.pred_instances[:count], model.dataset_meta)}'
    yield Drawing(f'predict_{picture.path.stem}', encode(drawn), f'{caption}.',
                  LEAST_WIDTH * (2 if truth else 1))


def _listed(found: InstanceData, meta: dict) -> str:
    """Return number, class and score of detections."""
    scored = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    return ', '.join(f'{number} {meta["classes"][label]} {score:.2f}'
                     for number, (label, score) in enumerate(scored))


def cam_mode(options: Options, picture: Picture) -> Iterator[Drawing | str]:
    """Yield where the score of a class, or of a detection, comes from, for one or two models."""
    sample = predict(options.detector.model, picture)
    seen = [(options.detector, picture, sample)]
    if options.other:
        prepared, = pictures_of_files(options.other.config, [picture.path])
        seen.append((options.other, prepared, predict(options.other.model, prepared)))
    targets, lacking = _find_targets(options, sample)
    yield from lacking
    for target in targets:
        cams = {}
        for detector, prepared, sample in seen:
            found = sample.pred_instances
            found = found[target.choose(found)]
            cams[detector.name] = found, compute_grad_cam(
                detector.model, options.layer, prepared, target) if len(found) else None
        name = f'cam_{picture.path.stem}_{target.name.replace(" ", "-").replace("/", "-")}'
        yield Drawing(name, draw_cams(
            picture.image, target, options.detector.model.dataset_meta, cams, options.layer), (
                f'Bright areas raise the score of {target.name}. Each map has its own scale. '
                'Frames mark the detections that are explained.'))


def _find_targets(options: Options, sample: DetDataSample) -> tuple[list[Target], list[str]]:
    """Return the scores to explain: of classes, of detections, or of the two best classes.

    Also return a sentence for each one that doesn't exist. Duplicates count once.
    """
    names, found = options.detector.model.dataset_meta['classes'], sample.pred_instances
    if options.boxes is not None:
        boxes = list(dict.fromkeys(options.boxes))
        targets = [box_target(found.bboxes[number], found.labels[number].item(),
                              f'{number} {names[found.labels[number]]}')
                   for number in boxes if number < len(found)]
        return targets, [f'there is no detection {number}: found {len(found)}, numbered from 0'
                         for number in boxes if number >= len(found)]
    threshold = options.threshold
    shown = list(dict.fromkeys(found.labels[found.scores >= threshold].tolist()))  # best first
    wanted = shown[:MOST_TARGETS] if options.labels is None else list(dict.fromkeys(options.labels))
    lacking = [f'no {names[label]} is detected with a score of at least {threshold}'
               for label in wanted if label not in shown]
    if not wanted:
        lacking = [f'nothing is detected with a score of at least {threshold}']
    return [class_target(label, names[label], threshold)
            for label in wanted if label in shown], lacking


def gates_mode(options: Options, picture: Picture) -> Iterator[Drawing | str]:
    """Yield channel gates as curves and spatial gates as maps, with the neutral constants."""
    gates = attention_gates(options.detector.model, picture)
    title = f'{options.detector.name}: {picture.path.name}'
    yield Drawing(f'gates_{picture.path.stem}', draw_gates(gates, title), (
        'How far the gates on this image are from the neutral constant (dashed). Shuffle attention '
        'starts there, and so does any attention on converted weights. Below: the mean channel '
        'gate of each group. Shaded: the range in the last block of the stage.'))
    for stage, drawn in draw_spatial_gates(picture.image, gates).items():
        name = short_name(stage).replace('.', '-')
        yield Drawing(f'gates_{picture.path.stem}_{name}', drawn, (
            f'Spatial gates in {stage} (last block, or largest map), as the mean over the channels '
            'of each group.'))


def groups_mode(options: Options, picture: Picture) -> Iterator[Drawing | str]:
    """Yield the response and the score of each group before and after the channel shuffle."""
    model = options.detector.model
    targets, lacking = _find_targets(options, predict(model, picture))
    yield from lacking
    if not find_layer(model, options.layer).shuffle:
        yield f'{options.layer} does not shuffle (shuffle=False): before and after are the same'
    if targets:
        found = group_scores(model, options.layer, picture, targets)
        title = f'{options.layer} of {options.detector.name}: {picture.path.name}'
        yield Drawing(f'groups_{picture.path.stem}', draw_groups(picture, found, title), (
            "Response: the mean output of a group's channels. Score: what the detector's score "
            'would lose without the group, to first order (gradient times output). After the '
            'shuffle, every group has channels of two groups.'))


MODES: dict[str, Mode] = {
    'predict': predict_mode,
    'cam': cam_mode,
    'gates': gates_mode,
    'groups': groups_mode,
}
