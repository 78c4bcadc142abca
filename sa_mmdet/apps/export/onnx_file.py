"""A detector's ONNX file: written, and compared with the detector."""
import contextlib
import io
import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ...checkpoint.files import write_atomically
from ...models.deploy import for_deployment
from ...version import __version__
from ..validate.config import datasets_below, reason
from ..visualize.detector import load_detector
from .detectors import ExportError, OneImageDetector

OLDEST_OPSET, OPSET = 16, 17  # RoiAlign of opset 16 is mmcv's
# how far apart boxes, in pixels, and scores may be
BOX, SCORE = 1e-3, 1e-5
SIZE = (320, 448)  # of the image that the graph is traced with


def check_packages() -> None:
    """Raise ExportError unless the packages of ONNX are there."""
    missing = [name for name in ('onnx', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise ExportError(f'ONNX files need {" and ".join(missing)}, which is not installed: '
                          f'pip install {" ".join(missing)}')


def export_detector(config: Config, checkpoint: Path, target: Path,
                    size: tuple[int, int] | None = None, opset: int = OPSET) -> nn.Module:
    """Write a trained detector as an ONNX file of standard operators alone.

    Shuffle attention in ResNet's bottlenecks is absorbed (``for_deployment``); where that cannot be
    done, a warning says why, and the network is exported as it is.

    Args:
        config: of a Faster R-CNN, Mask R-CNN or RetinaNet.
        checkpoint: its trained weights.
        target: the file.
        size: (H, W) of the images; None for any.
        opset: of ONNX, 16 at least.

    Returns:
        The detector as it was trained.

    Raises:
        ExportError: the detector cannot be exported, or the file cannot be written.
        CheckpointError: the weights cannot be used.
    """
    if opset < OLDEST_OPSET:
        raise ExportError(f'opset must be at least {OLDEST_OPSET}, whose RoiAlign is the '
                          f"detectors', got {opset}")
    detector = load_detector(config, checkpoint, 'cpu')
    try:
        deployed = for_deployment(detector)
    except ValueError as error:
        print(f'warning: exported as it was trained, without folding and absorbing: {error}')
        deployed = detector
    content = _onnx(OneImageDetector(deployed), size, opset)
    try:
        write_atomically(target, _described(content, detector, config))
    except OSError as error:
        raise ExportError(f'{target} could not be written: {error}') from error
    return detector


@torch.no_grad()
def _onnx(detector: OneImageDetector, size: tuple[int, int] | None, opset: int) -> bytes:
    axes = {} if size else dict(
        image={2: 'height', 3: 'width'},
        **{name: {0: 'detections'} for name in detector.output_names})
    file = io.BytesIO()
    image = 255 * torch.rand(1, 3, *(size or SIZE), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')  # of what is constant in a trace, and is meant to be
        try:
            torch.onnx.export(
                detector, (image, ), file, dynamo=False, opset_version=opset, dynamic_axes=axes,
                input_names=['image'], output_names=detector.output_names)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise ExportError(f'PyTorch cannot export it with opset {opset}: {reason(error)}. '
                              'Choose another detector, or another --opset') from error
    return file.getvalue()


def _described(content: bytes, detector: nn.Module, config: Config) -> bytes:
    """Return the file with what a user of it has to know."""
    import onnx
    model = onnx.load_from_string(content)
    if others := {f'{node.domain}::{node.op_type}' for node in model.graph.node if node.domain}:
        raise ExportError(f'{", ".join(sorted(others))} is no standard operator of ONNX: choose a '
                          'detector without it')
    onnx.checker.check_model(model)
    onnx.helper.set_model_props(model, {
        'classes': json.dumps(list(detector.dataset_meta.get('classes') or [])),
        'config': Path(config.filename).name, 'sa_mmdet': __version__})
    return model.SerializeToString()


def read_image(path: Path, config: Config, size: tuple[int, int] | None) -> np.ndarray:
    """Return an image (H, W, 3) as the detector is tested with it, or of the given size.

    Raises:
        ExportError: it is no image.
    """
    image = cv2.imread(str(path))
    if image is None:
        found = 'cannot be read as one' if path.is_file() else 'does not exist'
        raise ExportError(f'image {path} {found}: give a picture')
    if size:
        return cv2.resize(image, size[::-1])
    pipelines = (dataset.get('pipeline') or []
                 for dataset in datasets_below(config.get('test_dataloader')))
    resize = next((step for pipeline in pipelines for step in pipeline
                   if step['type'] == 'Resize'), None)
    if resize is None:
        return image
    return TRANSFORMS.build(resize)(dict(img=image))['img']


def verify(detector: nn.Module, file: Path, image: np.ndarray) -> None:
    """Print how far the file's detections are from the detector's; raise where it is too far.

    Args:
        detector: of ``export_detector``.
        file: its ONNX file, which onnxruntime runs.
        image: (H, W, 3), as OpenCV reads them.

    Raises:
        ExportError: onnxruntime cannot run it, or the detections are others.
    """
    image = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    expected = detections_of(detector, image)
    try:
        actual = detections_in(file, image)
    except Exception as error:  # of onnxruntime
        raise ExportError(f'{file} does not run in onnxruntime: {reason(error)}') from error
    if len(actual) != len(expected):
        raise ExportError(f'{file} gives {len(actual)} detections, the detector {len(expected)}. '
                          'Check another picture: where one is at the threshold, rounding decides; '
                          'otherwise please report it')
    order = matched(actual, expected)
    box = _largest(actual.bboxes[order] - expected.bboxes)
    score = _largest(actual.scores[order] - expected.scores)
    print(f'{len(expected)} detections in PyTorch and onnxruntime: boxes differ by {box:.1g} '
          f'pixels, scores by {score:.1g}')
    if 'masks' in expected:
        pixels = (actual.masks[order] != expected.masks).sum().item()
        print(f'masks differ in {pixels} of {expected.masks.sum().item()} pixels')
    same_labels = torch.equal(actual.labels[order], expected.labels)
    if box > BOX or score > SCORE or not same_labels:
        raise ExportError(f'{file} gives other detections than the detector: please report it')


def matched(actual: InstanceData, expected: InstanceData) -> Tensor:
    """Return for each expected detection the actual one that is it: equal scores have no order."""
    order, free = [], torch.ones(len(actual), dtype=torch.bool)
    for label, box, score in zip(expected.labels, expected.bboxes, expected.scores, strict=True):
        distance = (actual.bboxes - box).abs().amax(1) + (actual.scores - score).abs()
        distance[(actual.labels != label) | ~free] = torch.inf
        order.append(distance.argmin())
        free[order[-1]] = False
    return torch.stack(order) if order else torch.empty(0, dtype=torch.long)


@torch.no_grad()
def detections_of(detector: nn.Module, image: Tensor) -> InstanceData:
    """Return what a detector finds in an image (3, H, W), which is taken as it is."""
    size = tuple(image.shape[1:])
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1., 1.)))
    data = detector.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
    return detector(**data, mode='predict')[0].pred_instances


def detections_in(file: Path, image: Tensor) -> InstanceData:
    """Return what an ONNX file finds in an image (3, H, W), in onnxruntime."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        str(file), options, providers=['CPUExecutionProvider'])
    outputs = map(torch.from_numpy, session.run(None, {'image': image[None].float().numpy()}))
    found = dict(zip((output.name for output in session.get_outputs()), outputs, strict=True))
    instances = InstanceData(bboxes=found['dets'][:, :4], scores=found['dets'][:, 4],
                             labels=found['labels'])
    if 'masks' in found:
        instances.masks = pasted(found['masks'], instances.bboxes, *image.shape[1:])
    return instances


def pasted(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Return (K, H, W), bool: masks (K, h, w) in the places of their boxes, by MMDetection."""
    if not len(masks):
        return torch.zeros(0, height, width, dtype=torch.bool)
    return _do_paste_mask(masks[:, None], boxes, height, width, skip_empty=False)[0] >= 0.5


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item() if difference.numel() else 0.
