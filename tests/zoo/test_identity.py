"""FeatureAttention changes no detection, whichever detector it is put into, and wherever."""
import copy
from pathlib import Path

import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.runner import save_checkpoint
from torch import nn

from networks import draw_statistics
from sa_mmdet.apps.validate.config import dicts_below
from zoo.families import ZOO

R50 = [256, 512, 1024, 2048]
# in_channels before the neck and behind it, as docs/use.md tells them
DETECTORS = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': (R50, 256),
    'retinanet/retinanet_r50_fpn_1x_coco': (R50, 256),
    'yolox/yolox_s_8xb8-300e_coco': ([128, 256, 512], 128),
    'rtmdet/rtmdet_s_8xb32-300e_coco': ([128, 256, 512], 128),
    'detr/detr_r50_8xb2-150e_coco': ([2048], 256),
    'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco': ([96, 192, 384, 768], 256),
    'ssd/ssd300_coco': ([512, 1024], [512, 1024, 512, 256, 256, 256]),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': (R50, 256)}
SCORES = 'cls', 'obj', 'centerness'  # what layers that make scores are called


def test_the_page_tells_their_channels():
    page = (Path(__file__).parents[2] / 'docs/use.md').read_text()
    assert not [channels for pair in DETECTORS.values() for channels in pair
                if f'`{channels}`' not in page]


def read(name: str) -> Config:
    """A config without files of weights, whose images are small."""
    config = Config.fromfile(ZOO / f'{name}.py')
    for node in dicts_below(config.model):
        if isinstance(node.get('init_cfg'), dict) and node['init_cfg'].get('checkpoint'):
            node['init_cfg'] = None
        if 'score_thr' in node:
            node['score_thr'] = 0.05
    for node in dicts_below(config.test_dataloader.dataset.pipeline):
        node.update({key: (320, 320) for key in ('scale', 'size') if key in node and
                     'ssd' not in name})
    return config


def build(config: Config, checkpoint: str | None = None) -> nn.Module:
    detector = init_detector(copy.deepcopy(config), checkpoint, device='cpu')
    if config.model.type == 'SingleStageDetector':  # SSD
        detector.bbox_head.loss_cls = None  # https://github.com/open-mmlab/mmdetection/issues/11063
    return detector


def give_weights(detector: nn.Module, image: str) -> None:
    """Random weights and statistics, with which features keep their size and scores differ."""
    detector.init_weights()
    draw_statistics(detector)

    done = set()

    def normalise(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if layer in done:  # heads are shared by all levels
            return output
        done.add(layer)
        layer.weight.data *= layer.deviation / output.std().clamp(min=1e-6)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, layer.mean)
        return layer.forward(*inputs)

    hooks = []
    for name, layer in detector.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            makes_scores = any(word in name for word in SCORES)
            layer.mean, layer.deviation = -float(makes_scores), 0.2 if 'reg' in name else 1
            hooks.append(layer.register_forward_hook(normalise))
    inference_detector(detector, image)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize('name', DETECTORS, ids=lambda name: name.split('/')[1].split('_')[0])
def test_same_detections(name, coco_tiny, tmp_path):
    images = [str(path) for path in sorted((coco_tiny / 'val2017').glob('*.jpg'))[:2]]
    torch.manual_seed(0)
    config = read(name)
    plain = build(config)
    give_weights(plain, images[0])
    path = str(tmp_path / 'plain.pth')
    save_checkpoint(dict(meta=dict(dataset_meta=plain.dataset_meta),
                         state_dict=plain.state_dict()), path)
    before = [inference_detector(plain, image).pred_instances for image in images]
    assert min(map(len, before)) > 0

    neck = config.model.neck
    attention = [dict(type='FeatureAttention', in_channels=maps,
                      attention=dict(type='ShuffleAttention', groups='auto'))
                 for maps in DETECTORS[name]]
    for necks in ([attention[0], neck], [neck, attention[1]]):
        config.model.neck = necks
        detector = build(config, path)
        for image, expected in zip(images, before, strict=True):
            assert_same(inference_detector(detector, image).pred_instances, expected)


def assert_same(found, expected):
    """In any order of those whose scores are equal but for rounding."""
    assert len(found) == len(expected)
    distance = (found.bboxes[:, None] - expected.bboxes).abs().amax(2)
    other = (found.labels[:, None] != expected.labels) | (
        (found.scores[:, None] - expected.scores).abs() > 1e-5)
    distance.masked_fill_(other, torch.inf)
    assert distance.amin(0).max() < 1e-3
    assert distance.amin(1).max() < 1e-3
