"""The gates of a detector's backbone on an image, and their pictures."""
import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS

from networks import SIZE, VISIBLE, retinanet
from sa_mmdet.apps.validate.config import ConfigError
from sa_mmdet.apps.visualize.gates import attention_gates, draw_gates, draw_spatial_gates
from sa_mmdet.apps.visualize.pictures import prepare

GROUPS = 4


@pytest.mark.parametrize('backbone', [
    dict(type='SAResNet', attention=dict(groups=GROUPS)),
    dict(type='ResNet', plugins=[dict(cfg=dict(type='ShuffleAttention', groups=GROUPS),
                                      position='after_conv3')]),
], ids=['SAResNet', 'plugin'])
@torch.no_grad()
def test_are_those_of_the_layers_on_the_image(backbone, picture):
    model = retinanet(**backbone)
    gates = attention_gates(model, picture)
    assert [layer.name for layer in gates] == [
        f'backbone.layer{stage}.{block}.sa' for stage, blocks in enumerate((3, 4, 6, 3), start=1)
        for block in range(blocks)]
    assert not any(module._forward_pre_hooks for module in model.modules())

    x = prepare(model, picture)[0]
    network = model.backbone
    first = network.layer1[0]
    x = network.maxpool(network.relu(network.norm1(network.conv1(x))))
    x = first.relu(first.norm1(first.conv1(x)))
    x = first.norm3(first.conv3(first.relu(first.norm2(first.conv2(x)))))
    channel, spatial = first.sa.gates(x)
    torch.testing.assert_close(gates[0].channel, channel.reshape(GROUPS, 8), rtol=1e-4, atol=1e-5)
    spatial = spatial.reshape(GROUPS, 8, SIZE // 4, SIZE // 4).mean(1)
    torch.testing.assert_close(gates[0].spatial, spatial[:, :VISIBLE[0] // 4],
                               rtol=1e-4, atol=1e-5)
    assert gates[0].neutral == pytest.approx((0.7310586, 0.7310586))
    assert gates[0].channel.std() > 0.01
    assert gates[0].spatial.std() > 0.01


@pytest.mark.parametrize(('attention', 'kinds', 'neutral'), [
    ('SqueezeExcitation', (True, False), (0.5, None)),
    ('EfficientChannelAttention', (True, False), (0.5, None)),
    (dict(type='SpatialGroupEnhance', groups=GROUPS), (False, True), (None, 0.7310586)),
    ('CBAM', (True, True), (0.5, 0.5)),
    (dict(type='ShuffleAttention', groups=GROUPS, fc='none'), (True, True), (None, None)),
], ids=['SE', 'ECA', 'SGE', 'CBAM', 'without Fc'])
def test_of_other_attention(attention, kinds, neutral, picture):
    """Each is drawn with the gates that it has."""
    gates = attention_gates(retinanet(type='AttentionResNet', attention=attention), picture)
    assert (gates[0].channel is not None, gates[0].spatial is not None) == kinds
    assert gates[0].neutral == pytest.approx(neutral)
    assert size(draw_gates(gates, 'title'))[0] == 1440
    maps = draw_spatial_gates(picture.image, gates)
    assert list(maps) == ([f'backbone.layer{i}' for i in range(1, 5)] if kinds[1] else [])
    for png in maps.values():
        assert size(png)[0] > 1000


@pytest.mark.parametrize(('stages', 'maps'), [
    (((True, True, False, False), (False, False, True, True)), ['layer1', 'layer2']),
    (((False, False, True, True), (True, True, False, False)), ['layer3', 'layer4']),
    (((True, ) * 4, ) * 2, [f'layer{i}-sa' for i in range(1, 5)]),
], ids=['SA, then SE', 'SE, then SA', 'SA and SE'])
def test_of_two_kinds_of_attention(stages, maps, picture):
    """In different stages, or both in every block."""
    attention = [(dict(type='ShuffleAttention', groups=GROUPS), 'after_conv2'),
                 (dict(type='SqueezeExcitation'), 'after_conv3')]
    gates = attention_gates(retinanet(type='ResNet', plugins=[
        dict(cfg=cfg, position=position, stages=where)
        for (cfg, position), where in zip(attention, stages, strict=True)]), picture)
    assert draw_gates(gates, 'title').startswith(b'\x89PNG')
    assert list(draw_spatial_gates(picture.image, gates)) == [f'backbone.{name}' for name in maps]


@pytest.mark.parametrize('channels', [16, [16] * 5], ids=['shared', 'each'])
@torch.no_grad()
def test_of_feature_attention(channels, picture):
    """Each map has its gates, whichever layer they are of."""
    neck = dict(type='FeatureAttention', in_channels=channels, levels=[0, 1, 3],
                attention=dict(type='ShuffleAttention', groups=GROUPS))
    model = retinanet(type='SAResNet', attention=dict(groups=GROUPS), necks=[neck])
    gates = attention_gates(model, picture)
    names = [f'neck.1.level{level}.sa' for level in (0, 1, 3)]
    assert [layer.name for layer in gates][-3:] == names
    assert len(gates) == 16 + 3

    maps = model.neck[0](model.backbone(prepare(model, picture)[0]))
    for found, level in zip(gates[-3:], (0, 1, 3), strict=True):
        channel, _ = model.neck[1].layer_of(level).gates(maps[level])
        torch.testing.assert_close(found.channel, channel.reshape(GROUPS, 2))
        assert found.neutral == pytest.approx((0.7310586, 0.7310586))
    assert list(draw_spatial_gates(picture.image, gates))[-1] == 'neck.1'
    assert size(draw_gates(gates, 'title'))[0] == 1440


def test_of_maps_of_different_channels(picture):
    neck = dict(type='FeatureAttention', in_channels=[64, 128, 256, 512],
                attention='SqueezeExcitation')
    model = retinanet(type='ResNet')
    model.neck.insert(0, MODELS.build(neck))
    gates = attention_gates(model, picture)
    assert [len(layer.channel) for layer in gates] == [64, 128, 256, 512]
    assert draw_gates(gates, 'title').startswith(b'\x89PNG')


def test_of_a_detector_without_attention(picture):
    with pytest.raises(ConfigError, match='RetinaNet has no attention layer'):
        attention_gates(retinanet(type='ResNet'), picture)


def size(png: bytes) -> tuple[int, int]:
    height, width = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    return width, height
