"""Parameters and operations of a network, by the paper's convention and by MMEngine's.

One multiply-add is one operation. The paper's count runs on PyTorch's 'meta' device, whose tensors
have a shape but no values, so it takes no time. MMEngine's traces a forward pass on the CPU.
"""
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mmcv.cnn import get_model_complexity_info
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ...models.attention import AttentionLayer
from ..validate.config import reason

CONVENTIONS = ('paper', 'mmengine')
PROPOSALS = 1000
DETECTION_SHAPE = (800, 1280)
CLASSIFICATION_SHAPE = (224, 224)

# Operations for each kind that AttentionLayer.operations counts. The counter of the paper's time
# went by the type of a module. GroupNorm and the gates are in the paper's figures only for shuffle
# attention in detectors.
PAPER_WEIGHTS = {'pool': 1, 'linear': 1, 'conv': 1, 'batch_norm': 2}
PAPER_DETECTOR_SA_WEIGHTS = PAPER_WEIGHTS | {'group_norm': 2, 'gate': 1}
MMENGINE_WEIGHTS = PAPER_WEIGHTS | {'conv1d': 1, 'group_norm': 5}


@dataclass(frozen=True)
class Complexity:
    """Parameters in millions, and operations (multiply-adds) in billions for one image."""

    params_m: float
    gflops: float


class _CountedDetector(nn.Module):
    """A detector's forward pass on a fixed number of proposals, whatever its RPN proposes."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector
        for module in detector.modules():
            if isinstance(module, BaseRoIExtractor):
                _extract_shape_only(module)

    def forward(self, image: Tensor):
        detector = self.detector
        if not getattr(detector, 'with_roi_head', False) or not detector.with_rpn:
            return detector(image, [_data_sample(image)], mode='tensor')
        features = detector.extract_feat(image)
        proposals = InstanceData(bboxes=image.new_zeros(PROPOSALS, 4))
        dense = detector.rpn_head(features)
        return dense, detector.roi_head(features, [proposals], [_data_sample(image)])


class _Classifier(nn.Module):
    """A backbone with global average pooling and a linear layer, as on ImageNet."""

    def __init__(self, backbone: nn.Module, classes: int):
        super().__init__()
        self.backbone = backbone
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(backbone.feat_dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.pool(self.backbone(image)[-1]).flatten(1))


def detector_complexity(
        config: Config,
        convention: str = 'paper',
        shape: tuple[int, int] = DETECTION_SHAPE) -> Complexity:
    """Count the parameters and operations of a detector.

    Both conventions count the backbone, the neck and the dense head. In a two-stage detector they
    also count the box head on 1000 proposals and the mask head on 100. RoI extraction counts as 0.

    'paper' follows MMDetection 1.x and the mmcv of that time. It counts trainable parameters.
    Two-stage heads also regress a box and predict a mask for the background. Transposed
    convolutions count their output positions. Shuffle attention counts 2.5 operations for each
    element of its input, other attention layers their pooling and linear layers.

    'mmengine' counts all parameters, and the operators that ``mmengine.analysis.FlopAnalyzer``
    knows. For attention it takes the layer's own count with the analyzer's weights, whichever
    implementation runs.

    Args:
        config: config of a detector.
        convention: 'paper' or 'mmengine'.
        shape: height and width of the image, in pixels.

    Raises:
        ValueError: The convention is unknown, or the forward pass fails on an image of this shape.
    """
    count = _counter(convention, _count_detector_as_paper, _count_detector_as_mmengine)
    init_default_scope('mmdet')
    try:
        return count(config.model, shape)
    except (NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f'{config.model.type} cannot be counted on an image of '
                         f'{shape[0]}x{shape[1]}: {error}') from error


def classifier_complexity(
        backbone: dict,
        convention: str = 'paper',
        shape: tuple[int, int] = CLASSIFICATION_SHAPE,
        classes: int = 1000) -> Complexity:
    """Count the parameters and operations of a backbone with a linear classification layer.

    In attention layers, 'paper' counts pooling over positions, linear layers, 2-D convolutions with
    bias, and batch norm. It doesn't count group norm, 1-D convolutions or the gates.

    Args:
        backbone: config of the backbone.
        convention: 'paper' or 'mmengine', as in ``detector_complexity``.
        shape: height and width of the image, in pixels.
        classes: number of outputs of the linear layer.

    Raises:
        ValueError: The convention is unknown, the backbone cannot be built, or its forward pass
            fails on an image of this shape.
    """
    count = _counter(convention, _count_paper, _count_mmengine)
    init_default_scope('mmdet')
    try:
        with torch.device('meta' if convention == 'paper' else 'cpu'):
            model = _Classifier(MODELS.build(dict(backbone)), classes).eval()
        return count(model, shape)
    except Exception as error:  # whatever a backbone's class raises
        raise ValueError(f'{backbone.get("type")} cannot be counted on an image of '
                         f'{shape[0]}x{shape[1]}: {reason(error)}') from error


def _counter(convention: str, paper, mmengine):
    if convention not in CONVENTIONS:
        raise ValueError(f'convention must be one of {CONVENTIONS}, got {convention!r}')
    return paper if convention == 'paper' else mmengine


def _build(cfg: ConfigDict, device: str) -> nn.Module:
    with torch.device(device):
        return MODELS.build(copy.deepcopy(cfg))


def _data_sample(image: Tensor) -> DetDataSample:
    size = tuple(image.shape[2:])
    return DetDataSample(metainfo=dict(
        img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size,
        scale_factor=(1., 1.)))


def _extract_shape_only(extractor: BaseRoIExtractor) -> None:
    """Make an RoI extractor return features of the right shape, all that counting needs."""
    size = extractor.roi_layers[0].output_size

    def extract(features, rois, roi_scale_factor=None):
        return features[0].new_zeros(len(rois), extractor.out_channels, *size)

    extractor.forward = extract


def _add_background_class(model: nn.Module) -> None:
    """Add the background class, for which MMDetection 1.x also predicted boxes and masks."""
    for module in model.modules():
        classes = getattr(module, 'num_classes', None)
        if isinstance(module, BBoxHead) and module.with_reg and not module.reg_class_agnostic:
            outputs = module.fc_reg.out_features // classes * (classes + 1)
            module.fc_reg = nn.Linear(
                module.fc_reg.in_features, outputs, device=module.fc_reg.weight.device)
        elif isinstance(module, FCNMaskHead) and not module.class_agnostic:
            old = module.conv_logits
            module.conv_logits = nn.Conv2d(
                old.in_channels, classes + 1, old.kernel_size, device=old.weight.device)


@contextmanager
def _recorded(model: nn.Module, kind: type) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """Record every call of the modules of a type: module, input and output."""
    calls = []
    handles = [module.register_forward_hook(
        lambda module, inputs, output: calls.append((module, inputs[0], output)))
        for module in model.modules() if isinstance(module, kind)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _attention_operations(calls: list, weights) -> float:
    return sum(weights(layer).get(kind, 0) * count * len(x) for layer, x, _ in calls
               for kind, count in layer.operations(*x.shape[2:]).items())


def _count_detector_as_paper(cfg: ConfigDict, shape: tuple[int, int]) -> Complexity:
    for device in ('meta', 'cpu'):
        try:
            model = _CountedDetector(_build(cfg, device)).eval()
            _add_background_class(model)
            return _count_paper(model, shape, detection=True)
        except (NotImplementedError, RuntimeError):  # the detector or an operator needs values
            if device == 'cpu':
                raise


def _count_detector_as_mmengine(cfg: ConfigDict, shape: tuple[int, int]) -> Complexity:
    return _count_mmengine(_CountedDetector(_build(cfg, 'cpu')).eval(), shape)


def _count_paper(model: nn.Module, shape: tuple[int, int], detection: bool = False) -> Complexity:
    def weights(layer: AttentionLayer) -> dict[str, int]:
        sa_in_detector = detection and isinstance(layer, MODELS.get('ShuffleAttention'))
        return PAPER_DETECTOR_SA_WEIGHTS if sa_in_detector else PAPER_WEIGHTS

    with _recorded(model, AttentionLayer) as attention, \
            _recorded(model, nn.ConvTranspose2d) as transposed, torch.no_grad():
        total, _ = get_model_complexity_info(
            model, (3, *shape), print_per_layer_stat=False, as_strings=False)
    for layer in dict.fromkeys(layer for layer, *_ in attention):
        total -= sum(getattr(part, '__flops__', 0) for part in layer.modules())
    total += _attention_operations(attention, weights)
    for layer, x, y in transposed:
        # mmcv multiplies by the input's positions, the counter of the paper's time by the output's
        positions = len(x) * (y.shape[2:].numel() - x.shape[2:].numel())
        total += layer.weight.numel() * positions
    params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Complexity(params / 1e6, total / 1e9)


def _count_mmengine(model: nn.Module, shape: tuple[int, int]) -> Complexity:
    analyzer = FlopAnalyzer(model, (torch.zeros(1, 3, *shape), ))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    with _recorded(model, AttentionLayer) as attention, torch.no_grad():
        by_module = analyzer.by_module()
    names = {module: name for name, module in model.named_modules()}
    total = by_module['']
    total -= sum(by_module[names[layer]] for layer in dict.fromkeys(call[0] for call in attention))
    total += _attention_operations(attention, lambda layer: MMENGINE_WEIGHTS)
    return Complexity(parameter_count(model)[''] / 1e6, total / 1e9)
