"""Inference of MMDetection's detectors on one image, in operators that ONNX has.

MMDetection's own inference branches on sizes in Python, which a trace cannot follow. Here every
decision is an operator, so the exported graph takes images of any size. Networks, anchors and box
coders are MMDetection's.
"""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from mmdet.models import (
    AnchorHead,
    BBoxHead,
    FasterRCNN,
    FCNMaskHead,
    MaskRCNN,
    RetinaNet,
    RPNHead,
    SingleRoIExtractor,
    StandardRoIHead,
    TwoStageDetector,
)
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules import DeltaXYWHBBoxCoder
from mmengine.config import ConfigDict
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from .operators import NonMaxSuppression, RoiAlign, TopK


class ExportError(ValueError):
    """A detector cannot be exported; the message says why."""


class OneImageDetector(nn.Module):
    """A Faster R-CNN, Mask R-CNN or RetinaNet on one image.

    Args:
        detector: an MMDetection detector in evaluation mode.

    Raises:
        ExportError: the detector is another one, or has a part that predicts differently.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        _check(detector)
        self.detector = detector

    @property
    def output_names(self) -> list[str]:
        """Return the names of the outputs of ``forward``."""
        with_mask = getattr(self.detector, 'with_mask', False)
        return ['dets', 'labels', *['masks'] * with_mask]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect the objects in an image.

        Args:
            image: (1, 3, H, W), float32: blue, green and red from 0 to 255, as OpenCV reads them.

        Returns:
            ``dets``, (K, 5) float32: left, top, right and bottom in pixels of the image, and score,
            sorted by descending score. ``labels``, (K,) int64. Mask R-CNN also has ``masks``,
            (K, h, w) float32, usually 28 x 28: how probably each part of the box is the object.
        """
        height, width = image.shape[2:]
        border = torch.stack([torch.as_tensor(side) for side in (width, height, width, height)])
        features = self.detector.extract_feat(self._preprocessed(image))
        border = border.to(image.dtype)
        if not isinstance(self.detector, TwoStageDetector):
            head = self.detector.bbox_head
            return _of_classes(*_candidates(head, features, border, head.test_cfg), head)
        return self._second_stage(features, self._proposals(features, border), border)

    def _preprocessed(self, image: Tensor) -> Tensor:
        """Normalise, and pad to whole strides, as the data preprocessor does."""
        preprocessor = self.detector.data_preprocessor
        if preprocessor._channel_conversion:
            image = image.flip(1)
        if preprocessor._enable_normalize:
            image = (image - preprocessor.mean) / preprocessor.std
        divisor = preprocessor.pad_size_divisor
        height, width = image.shape[2:]
        return F.pad(image, (0, -width % divisor, 0, -height % divisor),
                     value=float(preprocessor.pad_value))

    def _proposals(self, features: tuple[Tensor, ...], border: Tensor) -> Tensor:
        """Return (N, 4): the proposals of the RPN, by descending score."""
        head = self.detector.rpn_head
        cfg = self.detector.test_cfg.rpn
        boxes, scores = [], []
        most = _most(cfg.max_per_img)
        for of_level, score, _ in _levels(head, features, border, cfg):
            kept = NonMaxSuppression.apply(of_level[None], score[None, None], most,
                                           cfg.nms.iou_threshold, -1.)[:, 2]
            boxes.append(of_level[kept])
            scores.append(score[kept])
        return torch.cat(boxes)[TopK.apply(torch.cat(scores), most)[1]]

    def _second_stage(self, features: tuple[Tensor, ...], proposals: Tensor, border: Tensor
                      ) -> tuple[Tensor, ...]:
        roi_head, cfg = self.detector.roi_head, self.detector.test_cfg.rcnn
        head = roi_head.bbox_head
        logits, deltas = head(_extract(roi_head.bbox_roi_extractor, features, proposals))
        scores = logits.softmax(-1)[:, :-1].t()  # (classes, N)
        boxes = _decode(head, proposals, deltas, border)
        if head.reg_class_agnostic:
            boxes, scores = boxes[None], scores[None]
        else:
            boxes, scores = boxes.unflatten(1, (-1, 4)).transpose(0, 1), scores[:, None]
        dets, labels = _suppressed(boxes, scores, cfg)
        if not roi_head.with_mask:
            return dets, labels
        masks = roi_head.mask_head(
            _extract(roi_head.mask_roi_extractor, features, dets[:, :4])).sigmoid()
        if roi_head.mask_head.class_agnostic:
            return dets, labels, masks[:, 0]
        return dets, labels, masks[torch.arange(labels.shape[0]), labels]


NMS_OPTIONS = 'type', 'iou_threshold', 'split_thr'  # the last only saves memory
# The methods by which each class predicts. A subclass that overrides one predicts differently.
PREDICTION = {
    AnchorHead: (BaseDenseHead, 'predict_by_feat'),
    StandardRoIHead: (StandardRoIHead, 'predict_bbox', 'predict_mask', '_bbox_forward',
                      '_mask_forward'),
    BBoxHead: (BBoxHead, '_predict_by_feat_single'),
    FCNMaskHead: (FCNMaskHead, '_predict_by_feat_single'),
    SingleRoIExtractor: (SingleRoIExtractor, 'forward', 'map_roi_levels'),
    DeltaXYWHBBoxCoder: (DeltaXYWHBBoxCoder, 'decode'),
}


def _check(detector: nn.Module) -> None:
    """Raise ExportError unless this file reproduces what a detector does."""
    if type(detector) not in (FasterRCNN, MaskRCNN, RetinaNet):
        raise ExportError(f'{type(detector).__name__} cannot be exported: choose a FasterRCNN, '
                          'MaskRCNN or RetinaNet')
    for part, expected in _parts(detector):
        base, *methods = PREDICTION.get(expected, (expected, 'forward'))
        if not isinstance(part, expected) or any(
                getattr(type(part), method) is not getattr(base, method) for method in methods):
            raise ExportError(f'{type(part).__name__} of this {type(detector).__name__} cannot be '
                              f'exported: choose one with {expected.__name__}')
    if isinstance(detector, TwoStageDetector):
        _check_dense_head(detector.rpn_head)
        _check_roi_head(detector.roi_head)
        _check_suppression(detector.test_cfg.rpn)
        _check_suppression(detector.test_cfg.rcnn)
    else:
        _check_dense_head(detector.bbox_head)
        _check_suppression(detector.test_cfg)
    preprocessor = detector.data_preprocessor
    pad_value = getattr(preprocessor, 'pad_value', None)
    if not isinstance(preprocessor, ImgDataPreprocessor) or not isinstance(pad_value, (int, float)):
        raise ExportError(f'the data preprocessor {type(preprocessor).__name__} with pad_value='
                          f'{pad_value} cannot be exported: choose DetDataPreprocessor with '
                          'a number as pad_value')


def _parts(detector: nn.Module) -> Iterator[tuple[nn.Module, type]]:
    """Yield the parts of a detector that predict, each with the class that it must be."""
    if not isinstance(detector, TwoStageDetector):
        yield from ((detector.bbox_head, AnchorHead),
                    (detector.bbox_head.bbox_coder, DeltaXYWHBBoxCoder))
        return
    roi_head = detector.roi_head
    yield from ((detector.rpn_head, AnchorHead), (roi_head, StandardRoIHead),
                (roi_head.bbox_head, BBoxHead))
    for head in (detector.rpn_head, roi_head.bbox_head):
        yield head.bbox_coder, DeltaXYWHBBoxCoder
    if roi_head.with_mask:
        yield roi_head.mask_head, FCNMaskHead
    for extractor in _extractors(roi_head):
        yield extractor, SingleRoIExtractor
        for layer in extractor.roi_layers:
            yield layer, RoIAlign


def _extractors(roi_head: StandardRoIHead) -> list[nn.Module]:
    return [roi_head.bbox_roi_extractor,
            *([roi_head.mask_roi_extractor] if roi_head.with_mask else [])]


def _check_dense_head(head: AnchorHead) -> None:
    if not head.use_sigmoid_cls or type(head)._predict_by_feat_single not in (
            BaseDenseHead._predict_by_feat_single, RPNHead._predict_by_feat_single):
        raise ExportError(f'{type(head).__name__} cannot be exported, because it overrides '
                          'the prediction or uses a softmax: choose a head with sigmoids')


def _check_roi_head(roi_head: StandardRoIHead) -> None:
    if roi_head.bbox_head.custom_cls_channels:
        raise ExportError(f'the loss {type(roi_head.bbox_head.loss_cls).__name__}, with its own '
                          'activation, cannot be exported: choose CrossEntropyLoss')
    if roi_head.with_shared_head:
        raise ExportError(f'{type(roi_head.shared_head).__name__}, a shared_head, cannot be '
                          'exported: choose a detector with a feature pyramid')
    for extractor in _extractors(roi_head):
        for layer in extractor.roi_layers:
            if layer.pool_mode != 'avg':
                raise ExportError(f'RoIAlign with pool_mode={layer.pool_mode!r} cannot be '
                                  "exported: choose 'avg'")


def _check_suppression(cfg: ConfigDict) -> None:
    nms = cfg.get('nms') or {}
    others = {key: value for key, value in nms.items() if key not in NMS_OPTIONS and value}
    if nms.get('type', 'nms') != 'nms' or 'iou_threshold' not in nms or others:
        raise ExportError(f'nms={nms and dict(nms)} of test_cfg cannot be exported: choose '
                          "dict(type='nms', iou_threshold=...)")


def _most(number: int) -> int:
    """Return a limit in a test_cfg; a negative number means no limit."""
    return number if number > 0 else 2**31 - 1


def _levels(head: AnchorHead, features: tuple[Tensor, ...], border: Tensor, cfg: ConfigDict
            ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield boxes (N, 4), scores (N,) and labels (N,) of the best anchors of each level."""
    class_maps, delta_maps = head(features)
    sizes = [scores.shape[2:] for scores in class_maps]
    anchors = head.prior_generator.grid_priors(sizes, device=border.device)
    for of_classes, deltas, priors in zip(class_maps, delta_maps, anchors, strict=True):
        logits = of_classes[0].permute(1, 2, 0).flatten()  # (H W anchors classes,)
        deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
        best, place = TopK.apply(logits, _most(cfg.get('nms_pre', -1)))
        anchor = place // head.cls_out_channels
        boxes = _decode(head, priors[anchor], deltas[anchor], border)
        scores, labels = best.sigmoid(), place % head.cls_out_channels
        if cfg.get('min_bbox_size', -1) >= 0:
            sides = boxes[:, 2:] - boxes[:, :2]
            large = (sides > cfg.min_bbox_size).all(1).nonzero().squeeze(1)
            boxes, scores, labels = boxes[large], scores[large], labels[large]
        yield boxes, scores, labels


def _candidates(head: AnchorHead, features: tuple[Tensor, ...], border: Tensor, cfg: ConfigDict
                ) -> list[Tensor]:
    """Return boxes, scores and labels of all levels."""
    return [torch.cat(parts) for parts in zip(*_levels(head, features, border, cfg), strict=True)]


def _of_classes(boxes: Tensor, scores: Tensor, labels: Tensor, head: AnchorHead
                ) -> tuple[Tensor, Tensor]:
    """Return the detections among boxes that have a score for one class each."""
    classes = torch.arange(head.cls_out_channels)[:, None]
    return _suppressed(boxes[None], torch.where(labels == classes, scores, 0.)[None], head.test_cfg)


def _decode(head: nn.Module, boxes: Tensor, deltas: Tensor, border: Tensor) -> Tensor:
    """Return (N, 4 classes): boxes (N, 4) after deltas of shape (N, 4 classes)."""
    decoded = head.bbox_coder.decode(boxes, deltas)
    if head.bbox_coder.clip_border:
        border = border.repeat(deltas.shape[1] // 4)
        decoded = torch.minimum(decoded.clamp(min=0), border)
    return decoded


def _suppressed(boxes: Tensor, scores: Tensor, cfg: ConfigDict) -> tuple[Tensor, Tensor]:
    """Return detections (K, 5) and labels (K,) of boxes (B, N, 4) with scores (B, classes, N).

    B is 1, or the number of classes if each has its own boxes and one score per box.
    """
    most = _most(cfg.get('max_per_img', -1))
    batch, label, place = NonMaxSuppression.apply(
        boxes, scores, most, cfg.nms.iou_threshold, float(cfg.get('score_thr', 0))).unbind(1)
    best, order = TopK.apply(scores[batch, label, place], most)
    return (torch.cat([boxes[batch, place][order], best[:, None]], 1), (batch + label)[order])


def _extract(extractor: SingleRoIExtractor, features: tuple[Tensor, ...], boxes: Tensor
             ) -> Tensor:
    """Return (N, C, h, w): the features of boxes (N, 4), each from the level for its size."""
    layers = extractor.roi_layers
    levels = extractor.map_roi_levels(F.pad(boxes, (1, 0)), len(layers))
    places = [(levels == level).nonzero().squeeze(1) for level in range(len(layers))]
    parts = [RoiAlign.apply(feature, boxes[place], layer)
             for feature, place, layer in zip(features, places, layers, strict=False)]
    return torch.cat(parts)[torch.cat(places).sort()[1]]
