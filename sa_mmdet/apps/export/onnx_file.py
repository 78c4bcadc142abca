"""Write a detector as an ONNX file, and compare the file with the detector."""
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

OLDEST_OPSET, OPSET = 16, 17  # opset 16 is the first whose RoiAlign is mmcv's
# largest differences of boxes, in pixels, and scores
BOX, SCORE = 1e-3, 1e-5
SIZE = (320, 448)  # of the image used for tracing


def check_packages() -> None:
    """Raise ExportError unless the packages for ONNX are installed."""
    missing = [name for name in ('onnx', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise ExportError(f'ONNX files need {" and ".join(missing)}, which you can install with '
                          f'pip install {" ".join(missing)}')


def export_detector(config: Config, checkpoint: Path, target: Path,
                    size: tuple[int, int] | None = None, opset: int = OPSET) -> nn.Module:
    """Write a trained detector as an ONNX file of standard operators only.

    Shuffle attention in ResNet's bottlenecks is absorbed (``for_deployment``). If that fails, a
    warning says why, and the network is exported as trained.

    Args:
        config: the config of a Faster R-CNN, Mask R-CNN or RetinaNet.
        checkpoint: its trained weights.
        target: the file to write.
        size: (H, W) of the images; None for any size.
        opset: the ONNX opset, at least 16.

    Returns:
        The detector as trained.

    Raises:
        ExportError: the detector cannot be exported, or the file cannot be written.
        CheckpointError: the weights cannot be used.
    """
    if opset < OLDEST_OPSET:
        raise ExportError(f'opset must be at least {OLDEST_OPSET}, got {opset}: older ones lack '
                          "the detectors' RoiAlign")
    detector = load_detector(config, checkpoint, 'cpu')
    try:
        deployed = for_deployment(detector)
    except ValueError as error:
        print(f'warning: exported as trained, without folding and absorbing: {error}')
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
        warnings.simplefilter('ignore')  # about values that are meant to be constant
        try:
            torch.onnx.export(
                detector, (image, ), file, dynamo=False, opset_version=opset, dynamic_axes=axes,
                input_names=['image'], output_names=detector.output_names)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise ExportError(f'PyTorch cannot export this detector with opset {opset}: '
                              f'{reason(error)}. Choose another one, or another --opset') from error
    return file.getvalue()


def _described(content: bytes, detector: nn.Module, config: Config) -> bytes:
    """Check the file, and return it with the classes, config and version as metadata."""
    import onnx
    model = onnx.load_from_string(content)
    if others := {f'{node.domain}::{node.op_type}' for node in model.graph.node if node.domain}:
        raise ExportError(f'{", ".join(sorted(others))} is not a standard operator of ONNX: choose '
                          'a detector without it')
    onnx.checker.check_model(model)
    onnx.helper.set_model_props(model, {
        'classes': json.dumps(list(detector.dataset_meta.get('classes') or [])),
        'config': Path(config.filename).name, 'sa_mmdet': __version__})
    return model.SerializeToString()


def read_image(path: Path, config: Config, size: tuple[int, int] | None) -> np.ndarray:
    """Return an image (H, W, 3), resized as in the detector's test or to the given size.

    Raises:
        ExportError: the file is not an image.
    """
    image = cv2.imread(str(path))
    if image is None:
        found = 'cannot be read' if path.is_file() else 'does not exist'
        raise ExportError(f'image {path} {found}: give an image file')
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
    """Print how much a file's detections differ from the detector's; raise if it is too much.

    Args:
        detector: from ``export_detector``.
        file: its ONNX file, which onnxruntime runs.
        image: (H, W, 3), as OpenCV reads it.

    Raises:
        ExportError: onnxruntime cannot run the file, or the detections differ.
    """
    image = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    expected = detections_of(detector, image)
    try:
        actual = detections_in(file, image)
    except Exception as error:  # onnxruntime's
        raise ExportError(f'{file} does not run in onnxruntime: {reason(error)}') from error
    if len(actual) != len(expected):
        raise ExportError(f'{file} gives {len(actual)} detections, the detector {len(expected)}. '
                          'Try another image: rounding decides on scores at the threshold. If the '
                          'numbers differ again, please report it')
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
    """Return the actual detection for each expected one: equal scores have no fixed order."""
    order, free = [], torch.ones(len(actual), dtype=torch.bool)
    for label, box, score in zip(expected.labels, expected.bboxes, expected.scores, strict=True):
        distance = (actual.bboxes - box).abs().amax(1) + (actual.scores - score).abs()
        distance[(actual.labels != label) | ~free] = torch.inf
        order.append(distance.argmin())
        free[order[-1]] = False
    return torch.stack(order) if order else torch.empty(0, dtype=torch.long)


@torch.no_grad()
def detections_of(detector: nn.Module, image: Tensor) -> InstanceData:
    """Return what a detector finds in an image (3, H, W), without resizing it."""
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
    """Return (K, H, W), bool: masks (K, h, w) pasted into their boxes by MMDetection."""
    if not len(masks):
        return torch.zeros(0, height, width, dtype=torch.bool)
    return _do_paste_mask(masks[:, None], boxes, height, width, skip_empty=False)[0] >= 0.5


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item() if difference.numel() else 0.
