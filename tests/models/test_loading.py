"""Weights of networks without attention, loaded by networks that have it as a plugin or a neck."""
import copy

import pytest
import torch
from mmdet.models.backbones import (
    DetectoRS_ResNet,
    RegNet,
    Res2Net,
    ResNeSt,
    ResNet,
    ResNeXt,
    TridentResNet,
)
from mmdet.registry import MODELS
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from networks import assert_same_outputs, image, randomised
from sa_mmdet.models import ConversionError, insert_feature_attention, loading

FPN = dict(type='FPN', in_channels=[16, 32], out_channels=16, num_outs=3)
REFINE = dict(type='BFP', in_channels=16, num_levels=3, refine_level=1, refine_type='conv')
PLUGIN = dict(cfg=dict(type='ShuffleAttention', groups='auto'), position='after_conv3')


def attention(*channels, **options):
    return dict(type='FeatureAttention', in_channels=list(channels),
                attention=dict(type='CBAM', reduction=4), **options)


BEFORE, BEHIND = attention(16, 32), attention(16, 16, 16)
SGE_BEFORE, SGE_BEHIND = (dict(neck, attention=dict(type='SpatialGroupEnhance', groups=4))
                          for neck in (BEFORE, BEHIND))
ONE_FOR_ALL = attention(16, 16, 16, shared=True)


@pytest.fixture
def said(monkeypatch):
    """What is told while weights are loaded."""
    messages = []
    monkeypatch.setattr(loading, 'print_log', lambda message, **_: messages.append(message))
    return messages


@MODELS.register_module()
class NeckOfLayers(nn.Module):
    """Somebody's neck, whose weights have names as FeatureAttention's."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(16, 16, 1, bias=False) for _ in range(3)])

    def forward(self, maps):
        return tuple(layer(x) for layer, x in zip(self.layers, maps, strict=True))


OWN = dict(type='NeckOfLayers')


class Detector(nn.Module):
    """What a checkpoint is of: a neck, and what stands beside it."""

    def __init__(self, neck):
        super().__init__()
        init_default_scope('mmdet')
        self.backbone = nn.ModuleList([nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 32, 3, 2)])
        if neck:
            self.neck = MODELS.build(neck)
        randomised(self)

    def forward(self, x):
        first = self.backbone[0](x)
        maps = first, self.backbone[1](first)
        return self.neck(maps) if hasattr(self, 'neck') else maps


def assert_same_features(a, b):
    with torch.no_grad():
        assert_same_outputs(a.eval()(image()), b.eval()(image()))


NECKS = {
    'behind': (FPN, [FPN, BEHIND]),
    'before': (FPN, [BEFORE, FPN]),
    'both': (FPN, [BEFORE, FPN, BEHIND]),
    'behind two': ([FPN, REFINE], [FPN, REFINE, BEHIND]),
    'between two': ([FPN, REFINE], [FPN, BEHIND, REFINE]),
    'before two': ([FPN, REFINE], [BEFORE, FPN, REFINE]),
    'between two of which one has layers': ([FPN, OWN], [FPN, SGE_BEHIND, OWN]),
    'behind two of which one has layers': ([FPN, OWN], [FPN, OWN, SGE_BEHIND]),
    'behind the only one of a list': ([FPN], [FPN, BEHIND]),
    'without a neck': (None, BEFORE),
    'without a neck, in a list': (None, [BEFORE]),
}


@pytest.mark.parametrize('place', NECKS)
def test_a_neck_without_attention(place, said):
    without, having = NECKS[place]
    plain, model = Detector(without), Detector(having)
    state = plain.state_dict()
    kept = copy.copy(state)
    model.load_state_dict(state, strict=True)
    assert_same_features(model, plain)
    assert state.keys() == kept.keys()
    assert len(said) == 1
    assert 'without FeatureAttention, which starts as the identity' in said[0]

    again = Detector(having)
    again.load_state_dict(randomised(model).state_dict())
    assert len(said) == 1
    assert_same_features(model, again)


@pytest.mark.parametrize('load', [
    lambda model, state: load_state_dict(model, state, strict=True),
    lambda model, state: load_state_dict(nn.ModuleDict(dict(module=model)), {
        f'module.{key}': value for key, value in state.items()}, strict=True),
    lambda model, state: (insert_feature_attention(model, state),
                          load_state_dict(model, state, strict=True)),
], ids=['mmengine', 'within another', 'by hand'])
def test_ways_of_loading(load):
    plain, model = Detector(FPN), Detector([FPN, BEHIND])
    load(model, plain.state_dict())
    assert_same_features(model, plain)


def test_copies_load_their_own():
    plain, model = Detector(FPN), Detector([FPN, BEHIND])
    average = ExponentialMovingAverage(model)
    average.load_state_dict(ExponentialMovingAverage(plain).state_dict())
    assert_same_features(average.module, plain)
    assert_same_features(model, Detector([FPN, BEHIND]))


def test_of_a_backbone_alone_nothing_is_changed(said):
    plain, model = Detector(FPN), Detector([FPN, BEHIND])
    before = copy.deepcopy(model.neck.state_dict())
    state = {key: value for key, value in plain.state_dict().items() if 'neck' not in key}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert missing == [f'neck.{key}' for key in before if 'num_batches' not in key]
    assert all(torch.equal(value, before[key]) for key, value in model.neck.state_dict().items())
    assert not said


def test_of_another_neck_nothing_is_refused():
    """MMDetection takes what fits, and tells the rest."""
    other = Detector(dict(type='SSDNeck', in_channels=[16, 32], out_channels=[16, 32, 16],
                          level_strides=[2], level_paddings=[1]))
    result = Detector([FPN, BEHIND]).load_state_dict(other.state_dict(), strict=False)
    assert {key.split('.')[0] for key in result.missing_keys} == {'neck'}
    assert 'neck.l2_norm.weight' in result.unexpected_keys


@pytest.mark.parametrize(('theirs', 'ours', 'message'), [
    ([FPN, BEHIND], [BEFORE, FPN],
     r'has neck\.1\.layers\.0\.mlp.* has FeatureAttention, FPN here: give the config'),
    ([BEFORE, FPN], [FPN, BEHIND], r'has neck\.0\.layers\..* has FPN, FeatureAttention here'),
    ([FPN, BEHIND], [BEFORE, FPN, BEHIND], r'neck\.1\.layers'),
    ([FPN, SGE_BEHIND], [BEFORE, FPN], r'has neck\.1\.layers\.0\.bias'),
    ([SGE_BEFORE, FPN], [FPN, BEHIND], r'has neck\.0\.layers\.0\.bias'),
    ([FPN, ONE_FOR_ALL], [FPN, BEHIND], r'lacks neck\.1\.layers\.1'),
    ([FPN, BEHIND], [FPN, ONE_FOR_ALL], r'has neck\.1\.layers\.1'),
])
def test_attention_elsewhere_is_refused(theirs, ours, message):
    model = Detector(ours)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConversionError, match=message) as refusal:
        model.load_state_dict(Detector(theirs).state_dict(), strict=False)
    assert '\n' not in str(refusal.value)
    assert all(torch.equal(value, before[key]) for key, value in model.neck.state_dict().items()
               if key in before)


BACKBONES = {
    'ResNet': lambda **options: ResNet(50, **options),
    'ResNeXt': lambda **options: ResNeXt(depth=50, groups=32, base_width=4, **options),
    'RegNet': lambda **options: RegNet('regnetx_400mf', **options),
    'Res2Net': lambda **options: Res2Net(depth=50, scales=4, base_width=26, **options),
    'ResNeSt': lambda **options: ResNeSt(depth=50, **options),
    'TridentResNet': lambda **options: TridentResNet(
        depth=50, num_branch=3, test_branch_idx=1, strides=(1, 2, 2), dilations=(1, 1, 1),
        trident_dilations=(1, 2, 3), num_stages=3, out_indices=(2, ), **options),
    'DetectoRS_ResNet': lambda **options: DetectoRS_ResNet(
        depth=50, conv_cfg=dict(type='ConvAWS'), sac=dict(type='SAC', use_deform=True),
        stage_with_sac=(False, True, True, True), **options),
}


@pytest.mark.parametrize('stages', [None, (False, True, True, False)], ids=['all', 'some'])
@pytest.mark.parametrize('name', BACKBONES)
def test_a_plugin_in_any_backbone(name, stages, said):
    build = BACKBONES[name]
    if name == 'TridentResNet' and stages:
        stages = stages[:3]
    plugin = dict(PLUGIN, **dict(stages=stages) if stages else {})
    plain, model = randomised(build()).double(), build(plugins=[plugin]).double()
    for key, value in plain.state_dict().items():
        if 'weight_gamma' in key:  # one that is not positive is taken for a missing one
            value.fill_(0.05)
    model.load_state_dict(plain.state_dict(), strict=True)
    model.eval()
    with torch.no_grad():
        x = image(size=128, dtype=torch.float64)
        assert_same_outputs(model(x), plain(x))
    assert len(said) == 1
    assert f'so that {name} computes the same function.' in said[0]
    model.load_state_dict(randomised(model).state_dict())
    assert len(said) == 1


def with_plugin(attention='ShuffleAttention', position='after_conv3', **options):
    return ResNet(50, base_channels=16, plugins=[dict(
        cfg=dict(type=attention, **(dict(groups=4) if 'Shuffle' in attention else {})),
        position=position)], **options)


def plain_weights(**options):
    return ResNet(50, base_channels=16, **options).state_dict()


def without(state, *parts):
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


GROUP_NORM = dict(norm_cfg=dict(type='GN', num_groups=4))


@pytest.mark.parametrize(('build', 'weights', 'reason'), [
    (lambda: with_plugin(**copy.deepcopy(GROUP_NORM)),
     lambda: plain_weights(**copy.deepcopy(GROUP_NORM)), 'only batch norm'),
    (lambda: with_plugin(position='after_conv2'), plain_weights, 'only for one layer, the first'),
    (with_plugin, lambda: with_plugin('SqueezeExcitation').state_dict(),
     'has layer1.0.se.fc1.weight'),
    (with_plugin, lambda: without(with_plugin().state_dict(), 'layer2.0.sa'), 'has 90 of the 96'),
])
def test_a_plugin_whose_weights_cannot_be_converted_says_so(build, weights, reason, said):
    """Once, and not of its own weights; nothing is refused that MMDetection takes."""
    state = weights()
    model = build()
    model.load_state_dict(state, strict=False)
    assert len(said) == 1
    assert reason in said[0]
    assert torch.equal(model.layer2[0].conv3.weight, state['layer2.0.conv3.weight'])
    model.load_state_dict(model.state_dict())
    assert len(said) == 1


@pytest.mark.parametrize('position', ['after_conv2', 'after_conv3'])
def test_a_plugin_says_nothing_where_there_are_no_weights_of_its_backbone(position, said):
    with_plugin(position=position).load_state_dict({'conv.weight': torch.zeros(1)}, strict=False)
    assert not said
