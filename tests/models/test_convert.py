import copy

import pytest
import torch
from mmdet.models.backbones import ResNet, ResNeXt
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from networks import LAYERS, assert_same_outputs, image, randomised
from sa_mmdet.models import (
    AttentionResNet,
    ConversionError,
    SAResNet,
    ShuffleAttention,
    SpatialGroupEnhance,
    convert_state_dict,
    loading,
)

ATTENTION = [layer.__name__ for layer in LAYERS]


def assert_computes_the_same(plain, attention, **tolerance):
    with torch.no_grad():
        before, after = plain(image(dtype=tolerance['dtype'])), attention(
            image(dtype=tolerance['dtype']))
    for x, y in zip(before, after, strict=True):
        assert (x - y).abs().max() <= tolerance['rtol'] * x.abs().max()
        assert x.abs().max() > 1e-3


def check_conversion(build_plain, build_attention):
    """Load plain weights into the network with attention, in both precisions."""
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        plain = randomised(build_plain()).to(dtype)
        attention = build_attention().to(dtype)
        state = plain.state_dict()
        for key, value in state.items():
            if 'conv_offset' in key:  # offsets of many pixels would amplify rounding
                value *= 0.01
        kept = copy.deepcopy(state)
        attention.load_state_dict(state, strict=True)
        attention.eval()
        assert_computes_the_same(plain, attention, dtype=dtype, rtol=rtol)
        assert state.keys() == kept.keys()
        assert all(torch.equal(state[key], kept[key]) for key in kept)


@pytest.mark.parametrize('depth', [50, 101])
def test_resnet_to_sa_resnet(depth):
    check_conversion(lambda: ResNet(depth), lambda: SAResNet(depth))


@pytest.mark.parametrize('options', [
    dict(deep_stem=True), dict(avg_down=True), dict(style='caffe'), dict(frozen_stages=2),
    dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True)),
    dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 16), position='after_conv3')]),
    dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1, )),
], ids=lambda options: next(iter(options)))
def test_options_of_resnet(options):
    check_conversion(lambda: ResNet(50, **copy.deepcopy(options)),
                     lambda: SAResNet(50, **copy.deepcopy(options)))


@pytest.mark.parametrize('attention', [
    dict(groups=32), dict(groups=1), dict(groups=128), dict(gn=False), dict(shuffle=False),
    dict(fc='conv')], ids=str)
def test_options_of_shuffle_attention(attention):
    check_conversion(lambda: ResNet(50), lambda: SAResNet(50, attention=attention))


@pytest.mark.parametrize('attention', ATTENTION)
def test_attention(attention):
    check_conversion(lambda: ResNet(50), lambda: AttentionResNet(50, attention))


def test_neutral_cbam_while_its_batch_norm_trains():
    plain = randomised(ResNet(50)).double()
    model = AttentionResNet(50, 'CBAM').double()
    model.load_state_dict(plain.state_dict())
    model.train()
    assert model.layer1[0].cbam.spatial[1].training is False  # norm_eval holds for it too
    for block in (b for i in range(1, 5) for b in getattr(model, f'layer{i}')):
        block.cbam.train()
    x = image(dtype=torch.float64)
    assert_same_outputs(model(x), plain(x))


def test_conversion_of_a_plugin():
    """ResNeXt, whose attention is a plugin, through the function that the tool calls."""
    plugin = dict(cfg=dict(type='ShuffleAttention'), position='after_conv3')
    plain = randomised(ResNeXt(depth=50, groups=32, base_width=4)).double()
    model = ResNeXt(depth=50, groups=32, base_width=4, plugins=[plugin]).double()
    state = plain.state_dict()
    assert convert_state_dict(model, state) == 16
    model.load_state_dict(state, strict=True)
    model.eval()
    assert_computes_the_same(plain, model, dtype=torch.float64, rtol=1e-12)


class Wrapper(nn.Module):

    def __init__(self, backbone):
        super().__init__()
        self.module = nn.ModuleDict(dict(backbone=backbone))


@pytest.mark.parametrize('load', [
    lambda model, state: model.load_state_dict(state),
    lambda model, state: load_state_dict(model, state, strict=False),
], ids=['torch', 'mmengine'])
def test_under_any_prefix(load):
    plain, model = randomised(ResNet(50)), SAResNet(50)
    load(Wrapper(model), Wrapper(plain).state_dict())
    model.eval()
    assert_computes_the_same(plain, model, dtype=torch.float32, rtol=1e-5)


def test_own_weights_are_loaded_as_they_are():
    model = randomised(SAResNet(50))
    again = SAResNet(50)
    again.load_state_dict(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_conversion_can_be_turned_off():
    plain, model = randomised(ResNet(50)), SAResNet(50, convert_weights=False)
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(model.layer1[0].conv3.weight, plain.layer1[0].conv3.weight)
    assert 'layer1.0.sa.cweight' in result.missing_keys


def test_says_so_once(monkeypatch):
    said = []
    monkeypatch.setattr(loading, 'print_log', lambda message, **_: said.append(message))
    model = SAResNet(50)
    model.load_state_dict(ResNet(50).state_dict())
    assert len(said) == 1
    assert '16 bottlenecks were converted' in said[0]
    model.load_state_dict(model.state_dict())
    assert len(said) == 1


def test_pretrained_init_cfg(tmp_path):
    plain = randomised(ResNet(50))
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'resnet.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet.pth'))
    model = SAResNet(50, frozen_stages=1, init_cfg=init)
    model.init_weights()
    model.eval()
    assert_computes_the_same(plain, model, dtype=torch.float32, rtol=1e-5)


def test_moving_average():
    """What MMEngine's EMAHook loads from a checkpoint's ema_state_dict."""
    plain, average = randomised(ResNet(50)), ExponentialMovingAverage(SAResNet(50))
    average.load_state_dict(ExponentialMovingAverage(plain).state_dict())
    average.module.eval()
    assert_computes_the_same(plain, average.module, dtype=torch.float32, rtol=1e-5)


@pytest.mark.parametrize('attention', ATTENTION)
def test_attention_learns_from_its_neutral_start(attention):
    """Every parameter that the formula gives a gradient gets one."""
    model = AttentionResNet(50, attention)
    model.load_state_dict(randomised(ResNet(50)).state_dict())
    model.eval()
    target = torch.Generator().manual_seed(2)
    sum((y - torch.randn(y.shape, generator=target)).square().mean()
        for y in model(image())).backward()
    # Zero by the formula, at the start: what stands before a weight that is zero.
    behind_a_zero = {'sa': ('gn.',), 'se': ('fc1.',), 'eca': (), 'sge': (),
                     'cbam': ('mlp.0.', 'spatial.0.')}
    for name, p in model.named_parameters():
        for abbreviation, parts in behind_a_zero.items():
            if f'.{abbreviation}.' in name:
                parameter = name.split(f'.{abbreviation}.')[1]
                assert bool(p.grad.any()) != parameter.startswith(parts), name


@pytest.mark.parametrize(('change', 'message'), [
    (lambda state: state.update({'layer1.0.sa.cweight': torch.zeros(1, 2, 1, 1)}),
     r'has 1 of the 96 parameters .* Missing: layer1\.0\.sa\.cbias.* and 92 more'),
    (lambda state: state.pop('layer3.5.conv3.weight'), 'has 15 of the 16 bottlenecks'),
    (lambda state: state.pop('layer2.1.bn3.bias'), r'lacks layer2\.1\.bn3\.bias'),
    (lambda state: state.update({'layer1.2.conv3.weight': torch.zeros(8, 64, 1, 1)}),
     r'layer1\.2\.conv3\.weight must have shape \(256, 64, 1, 1\), .* got \(8, 64, 1, 1\)'),
    (lambda state: state.update({'layer4.0.se.fc1.weight': torch.zeros(1)}),
     r'has layer4\.0\.se\.fc1\.weight, which the network does not have'),
])
def test_checkpoints_that_do_not_fit(change, message):
    state = ResNet(50).state_dict()
    change(state)
    with pytest.raises(ConversionError, match=message):
        SAResNet(50).load_state_dict(state, strict=False)


def test_another_depth():
    with pytest.raises(ConversionError, match='has 16 of the 33 bottlenecks'):
        SAResNet(101).load_state_dict(ResNet(50).state_dict(), strict=False)


SE = 'SqueezeExcitation'


@pytest.mark.parametrize(('theirs', 'ours', 'message'), [
    ('SAResNet', SE, r'has layer1\.0\.sa\.\w+, .* Give a checkpoint with the same attention'),
    (SE, 'SAResNet',
     r'has layer1\.0\.se\.fc1\.weight, .* Give a checkpoint with the same attention'),
    (dict(type=SE, bias=True), SE,
     r'has layer1\.0\.se\.fc1\.bias, .* model\.backbone\.attention\.bias=True'),
    (SE, dict(type=SE, bias=True),
     r'has 32 of the 64 parameters .* model\.backbone\.attention\.bias=False'),
    (dict(shuffle=False), 'SAResNet', r'has layer1\.0\.sa\.unshuffled, which the network'),
    ('SAResNet', dict(shuffle=False), 'has 96 of the 112 parameters'),
    (dict(gn=False), 'SAResNet', 'has 64 of the 96 parameters'),
    ('SAResNet', dict(gn=False), r'has layer1\.0\.sa\.gn\.'),
    (dict(fc='none'), 'SAResNet', 'has 32 of the 96 parameters'),
    (dict(fc='conv'), 'SAResNet', 'has 32 of the 96 parameters'),
], ids=str)
def test_another_attention(theirs, ours, message):
    """Of another kind, or with another part: nothing is left out or left as it is in silence."""
    def build(attention):
        if attention == 'SAResNet':
            return SAResNet(50)
        is_ablation = isinstance(attention, dict) and 'type' not in attention
        return (SAResNet if is_ablation else AttentionResNet)(50, attention=attention)

    with pytest.raises(ConversionError, match=message):
        build(ours).load_state_dict(build(theirs).state_dict(), strict=False)


@pytest.mark.parametrize(('build', 'message'), [
    (lambda: SAResNet(50, norm_cfg=dict(type='GN', num_groups=32)), 'is GroupNorm: only batch'),
    (lambda: SAResNet(50, attention=dict(fc='none')), "with fc='none' the gates"),
])
def test_networks_that_cannot_be_converted(build, message):
    model = build()
    state = {key: value for key, value in model.state_dict().items() if '.sa.' not in key}
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state)


def test_attention_elsewhere_is_refused():
    model = ResNet(50, plugins=[dict(cfg=dict(type='ShuffleAttention', groups=8),
                                     position='after_conv2')])
    with pytest.raises(ConversionError, match=r"layer1\.0 holds the attention \['sa'\]"):
        convert_state_dict(model, ResNet(50).state_dict())


@pytest.mark.parametrize('layer',
                         [ShuffleAttention(24, groups=3), SpatialGroupEnhance(24, groups=3)])
def test_neutral_state_is_what_it_says(layer):
    state, factor = layer.neutral_state()
    layer.load_state_dict(state)
    x = torch.randn(2, 24, 5, 4)
    torch.testing.assert_close(layer(x[:, layer.source_channels()]), factor * x)
