"""Where a detector's score comes from: Grad-CAM (Selvaraju et al., arXiv 1610.02391)."""
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..validate.config import ConfigError
from .detector import find_layer
from .pictures import Picture, detect, prepare, visible_shape

NO_GRADIENT = 'used in the graph', 'does not require grad'  # PyTorch's words
SAME_BOX = 0.5  # with at least this IoU, a box of another model is the same object
DENSE = SingleStageDetector, SingleStageInstanceSegmentor


class _Attached(TorchFunctionMode):
    """Disable ``Tensor.detach``: dense heads detach the maps that scores come from."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func is Tensor.detach else func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Target:
    """The score to explain: the sum over the detections that ``choose`` selects.

    Attributes:
        name: name in pictures.
        choose: maps detections of one image, best first, to a mask of shape (detections, ).
    """

    name: str
    choose: Callable[[InstanceData], Tensor]


def class_target(label: int, name: str, threshold: float) -> Target:
    """Return the target of all detections of a class with a score of at least ``threshold``."""
    return Target(name, lambda found: (found.labels == label) & (found.scores >= threshold))


def box_target(box: Tensor, label: int, name: str) -> Target:
    """Return the target of a class's best detection with IoU >= 0.5 with ``box``, (4, )."""

    def choose(found: InstanceData) -> Tensor:
        overlaps = bbox_overlaps(found.bboxes.detach(), box.to(found.bboxes)[None]).flatten()
        overlaps = overlaps.masked_fill(found.labels != label, 0.)
        best = torch.zeros_like(overlaps, dtype=torch.bool)
        if len(overlaps) and overlaps.max() >= SAME_BOX:
            best[overlaps.argmax()] = True
        return best

    return Target(name, choose)


def compute_grad_cam(model: nn.Module, layer: str, picture: Picture, target: Target) -> Tensor:
    """Compute Grad-CAM of a detector's scores at a layer, over the whole image.

    With the layer's output A, (1, K, h, w), and the score s, it is ReLU(sum over k of a_k A_k),
    where a_k is the mean of ds/dA_k over positions (equations 1 and 2). The map is scaled up
    bilinearly, and the padding is cut off.

    Args:
        model: the detector, in evaluation mode.
        layer: name of a layer whose output is a map of the whole image.
        picture: the image.
        target: the score, which must select a detection.

    Returns:
        (H, W) of the picture, float32, on the CPU, at least 0, in units of the score.

    Raises:
        ConfigError: There is no such layer, it doesn't run exactly once, its output is not a map
            of the image, or no gradient of the score reaches it.
    """
    inputs, samples = prepare(model, picture)
    cam = _attribute('LayerGradCam', model, layer, picture, target, relu_attributions=True)
    if cam.dim() != 4 or cam.shape[0] != 1:
        raise ConfigError(f'the output of layer {layer} is not a map of the whole image: choose a '
                          'layer of the backbone or the neck')
    cam = F.interpolate(cam, inputs.shape[-2:], mode='bilinear', align_corners=False)
    height, width = visible_shape(samples[0])
    cam = F.interpolate(cam[..., :height, :width], picture.image.shape[:2], mode='bilinear',
                        align_corners=False)
    return cam[0, 0].detach().float().cpu()


def gradient_times_output(model: nn.Module, layer: str, picture: Picture,
                          target: Target) -> Tensor:
    """Return a layer's output times the gradient of a detector's score.

    The product's sum over a part of the output is, to first order, what the score would lose
    without that part (Molchanov et al., arXiv 1611.06440, equation 7). Arguments and errors are
    those of ``compute_grad_cam``.

    Returns:
        (1, K, h, w), on the CPU.
    """
    return _attribute('LayerGradientXActivation', model, layer, picture, target).detach().cpu()


def _score(model: nn.Module, picture: Picture, target: Target) -> Callable[[Tensor], Tensor]:
    """Return a function from the detector's input to the score, (1, )."""

    def score(inputs: Tensor) -> Tensor:
        _, samples = prepare(model, picture)
        with _Attached() if isinstance(model, DENSE) else nullcontext():
            found = detect(model, inputs, samples).pred_instances
        return found.scores[target.choose(found)].sum().reshape(1)

    return score


def _attribute(method: str, model: nn.Module, layer: str, picture: Picture, target: Target,
               **options) -> Tensor:
    """Return what a captum method computes at a layer."""
    check_captum()
    import captum.attr
    module, outputs = find_layer(model, layer), []
    attribution = getattr(captum.attr, method)(_score(model, picture, target), module)
    inputs, _ = prepare(model, picture)
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(type(output)))
    try:
        result = attribution.attribute(inputs.requires_grad_(), **options)
    except Exception as error:  # captum raises KeyError, AssertionError, ...
        _check_outputs(layer, outputs)
        if any(cause in str(error) for cause in NO_GRADIENT):
            raise ConfigError(f'no gradient of the score reaches layer {layer}: choose an earlier '
                              'layer') from error
        raise
    finally:
        hook.remove()
    _check_outputs(layer, outputs)
    return result


def _check_outputs(layer: str, outputs: list[type]) -> None:
    """Raise ConfigError unless a layer ran once and returned one tensor."""
    if not outputs:
        raise ConfigError(f'layer {layer} does not run when the detector predicts: choose another')
    if not issubclass(outputs[0], Tensor):
        raise ConfigError(f'layer {layer} returns a {outputs[0].__name__}, not one map: choose a '
                          'layer within it')
    if len(outputs) > 1:
        raise ConfigError(f'layer {layer} runs {len(outputs)} times on one image: choose one that '
                          'runs once, such as a block of the backbone')


def check_captum() -> None:
    """Raise ConfigError unless captum, which computes gradients at layers, can be imported."""
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise ConfigError('captum, which computes gradients at layers, cannot be imported '
                          f'({error}): run pip install captum') from error
