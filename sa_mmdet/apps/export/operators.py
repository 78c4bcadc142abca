"""ONNX operators that PyTorch's exporter does not generate from MMDetection's code."""
import torch
from mmcv.ops import nms, roi_align
from torch import Tensor
from torch.autograd import Function


class TopK(Function):
    """The largest values of a vector and their indices, at most k, in descending order."""

    @staticmethod
    def forward(ctx, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return torch.topk(values, min(k, values.numel()))

    @staticmethod
    def symbolic(g, values, k: int):
        most = g.op('Constant', value_t=torch.tensor([k]))
        return g.op('TopK', values, g.op('Min', g.op('Shape', values), most), axis_i=0, outputs=2)


class NonMaxSuppression(Function):
    """ONNX's non-maximum suppression of each box set and class.

    Args of ``apply``:
        boxes: (B, N, 4); B sets.
        scores: (B, K, N); K classes.
        most: the largest number of boxes kept for each class and set.
        iou_threshold: a box is dropped above this IoU with a better one.
        score_threshold: a box is kept only above this score.

    Returns:
        (M, 3), int64: set, class and index of each kept box.
    """

    @staticmethod
    def forward(ctx, boxes: Tensor, scores: Tensor, most: int, iou_threshold: float,
                score_threshold: float) -> Tensor:
        kept = []
        for batch, of_classes in enumerate(scores):
            for label, of_class in enumerate(of_classes):
                places = (of_class > score_threshold).nonzero().flatten()
                keep = nms(boxes[batch, places], of_class[places], iou_threshold)[1][:most]
                kept.append(torch.stack([torch.full_like(keep, batch),
                                         torch.full_like(keep, label), places[keep]], 1))
        return torch.cat(kept)

    @staticmethod
    def symbolic(g, boxes, scores, most: int, iou_threshold: float, score_threshold: float):
        most, iou_threshold, score_threshold = (
            g.op('Constant', value_t=torch.tensor([value], dtype=dtype))
            for value, dtype in ((most, torch.int64), (iou_threshold, torch.float32),
                                 (score_threshold, torch.float32)))
        return g.op('NonMaxSuppression', boxes, scores, most, iou_threshold, score_threshold)


class RoiAlign(Function):
    """mmcv's RoIAlign of one image, as the operator of ONNX opset 16.

    Args of ``apply``:
        features: (1, C, H, W).
        boxes: (N, 4) in pixels of the image.
        layer: the ``mmcv.ops.RoIAlign`` with the settings.

    Returns:
        (N, C, h, w).
    """

    @staticmethod
    def forward(ctx, features: Tensor, boxes: Tensor, layer) -> Tensor:
        rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
        return roi_align(features, rois, layer.output_size, layer.spatial_scale,
                         layer.sampling_ratio, layer.pool_mode, layer.aligned)

    @staticmethod
    def symbolic(g, features, boxes, layer):
        # all zeros: every box is in the first image
        first = g.op('Constant', value_t=torch.tensor([0]))
        number = g.op('Gather', g.op('Shape', boxes), first)
        images = g.op('ConstantOfShape', number, value_t=torch.tensor([0]))
        height, width = layer.output_size
        return g.op('RoiAlign', features, boxes, images, output_height_i=height,
                    output_width_i=width, spatial_scale_f=layer.spatial_scale,
                    sampling_ratio_i=layer.sampling_ratio, mode_s=layer.pool_mode,
                    coordinate_transformation_mode_s=(
                        'half_pixel' if layer.aligned else 'output_half_pixel'))
