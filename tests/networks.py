"""Networks and inputs that several tests share."""
import inspect

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from sa_mmdet.models import AttentionLayer

LAYERS = sorted(AttentionLayer.__subclasses__(), key=lambda layer: layer.__name__)
SIZE, VISIBLE = 64, (48, 64)  # of a slim detector's input and of the image in it


def small(layer: type[AttentionLayer], **options) -> dict:
    """Options with which a layer takes few channels, and others for which it has room."""
    options = dict(groups=2, reduction=2) | options
    return {key: value for key, value in options.items()
            if key in inspect.signature(layer).parameters}


def randomised(model: nn.Module) -> nn.Module:
    """Random weights and batch statistics, always the same, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            random = torch.randn(value.shape, generator=generator)
            if 'running_var' in name:
                value.copy_(1 + random.abs())
            else:
                value.copy_(random * (2 / max(1, value[0].numel()))**0.5)
    model.eval()
    return model


def draw_statistics(model: nn.Module) -> None:
    """Give batch norms other statistics than the initial ones."""
    for name, value in model.state_dict().items():
        if 'running_var' in name:
            value.uniform_(0.5, 1.5)
        elif 'running_mean' in name:
            value.normal_(0, 0.1)


def give_weights(detector: nn.Module) -> None:
    """Random weights whose features keep their size."""
    detector.init_weights()
    draw_statistics(detector)
    for name, value in detector.state_dict().items():
        if 'bn3.weight' in name:
            value.uniform_(0.1, 0.3)


def image(size: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random image, always the same."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_same_outputs(a, b, **tolerance):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, **tolerance)


def retinanet(necks: tuple[dict, ...] = (), **backbone) -> nn.Module:
    """A RetinaNet with a slim backbone, more necks behind its FPN, and random weights."""
    init_default_scope('mmdet')
    return randomised(MODELS.build(ConfigDict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=SIZE),
        backbone=dict(depth=50, base_channels=16, **backbone),
        neck=[dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=5),
              *necks],
        bbox_head=dict(
            type='RetinaHead', num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                ratios=[1.0], strides=[8, 16, 32, 64, 128])),
        test_cfg=dict(nms_pre=10, min_bbox_size=0, score_thr=0., max_per_img=5,
                      nms=dict(type='nms', iou_threshold=0.5)))))
