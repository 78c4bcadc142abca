import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from mmdet.models.backbones import RegNet, ResNeSt, ResNet, ResNeXt
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from torch import nn

from networks import LAYERS, assert_same_outputs, image, randomised
from sa_mmdet.models import AttentionResNet, SAResNet

DATA = Path(__file__).parents[1] / 'data'
PLUGIN = dict(cfg=dict(type='ShuffleAttention'), position='after_conv3')
def test_no_default_scope_is_set():
    assert DefaultScope.get_current_instance() is None


@pytest.mark.parametrize('depth', [50, 101])
def test_state_dict_is_the_published_one(depth):
    expected = json.loads((DATA / f'sa_resnet{depth}_state_dict.json').read_text())
    expected = {name: shape for name, shape in expected.items() if not name.startswith('fc.')}
    for model in (SAResNet(depth), ResNet(depth, plugins=[PLUGIN])):
        assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected


@pytest.mark.parametrize('attention', LAYERS)
def test_equals_resnet_with_the_plugin(attention):
    backbone = randomised(AttentionResNet(50, attention.__name__))
    plugin = ResNet(50, plugins=[dict(cfg=dict(type=attention.__name__), position='after_conv3')])
    plugin.load_state_dict(backbone.state_dict(), strict=True)
    plugin.eval()
    assert isinstance(getattr(backbone.layer1[0], attention._abbr_), attention)
    x = image(dtype=torch.float64)
    assert_same_outputs(backbone.double()(x), plugin.double()(x), rtol=1e-9, atol=1e-10)


def test_bottleneck_is_conv_bn_attention_add_relu():
    """The attention acts after bn3 and before the residual addition."""
    block = randomised(SAResNet(50)).layer1[0]
    x = torch.randn(1, 64, 8, 8)
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.relu(block.bn2(block.conv2(out)))
    out = block.sa(block.bn3(block.conv3(out)))
    assert_same_outputs([block(x)], [torch.relu(out + block.downsample(x))])


def test_sa_resnet_is_attention_resnet():
    assert_same_outputs(
        randomised(SAResNet(50))(image()),
        randomised(AttentionResNet(50, 'ShuffleAttention'))(image()))


def test_attention_options_reach_the_layer():
    assert SAResNet(50, attention=dict(groups=32)).layer2[0].sa.groups == 32
    assert AttentionResNet(
        50, dict(type='SqueezeExcitation', reduction=8)).layer1[0].se.fc1.out_features == 32


def test_built_from_configs():
    for cfg in (dict(type='SAResNet', depth=50),
                dict(type='AttentionResNet', depth=50, attention=dict(type='CBAM')),
                dict(type='mmdet.SAResNet', depth=50)):
        assert isinstance(MODELS.build(cfg), AttentionResNet)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 4])
def test_frozen_stages(frozen_stages):
    model = SAResNet(50, frozen_stages=frozen_stages).train()
    for stage in range(1, 5):
        layer = getattr(model, f'layer{stage}')
        frozen = stage <= frozen_stages
        assert all(p.requires_grad != frozen for p in layer.parameters())
        assert layer[0].sa.training != frozen
    assert model.conv1.weight.requires_grad == (frozen_stages < 0)


@pytest.mark.parametrize('norm_eval', [True, False])
def test_norm_eval(norm_eval):
    model = SAResNet(50, norm_eval=norm_eval)
    assert model.train() is model
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.training != norm_eval for m in norms)
    assert model.layer1[0].sa.gn.training
    assert model.eval() is model
    assert not any(m.training for m in model.modules())


def test_checkpointing_keeps_outputs_and_gradients():
    plain, checkpointed = SAResNet(50, norm_eval=True), SAResNet(50, with_cp=True)
    checkpointed.load_state_dict(randomised(plain).state_dict())
    grads = []
    for model in (plain.double(), checkpointed.double()):
        model.train()
        sum(y.square().mean() for y in model(image(dtype=torch.float64))).backward()
        grads.append([p.grad for p in model.parameters()])
    assert_same_outputs(*grads)


@pytest.mark.parametrize('options', [
    dict(deep_stem=True), dict(avg_down=True), dict(style='caffe'),
    dict(norm_cfg=dict(type='GN', num_groups=32)), dict(stem_channels=32),
    dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(1, 2)),
    dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True)),
    dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 16), position='after_conv3')]),
], ids=lambda options: next(iter(options)))
def test_options_of_resnet(options):
    """The same keys as ResNet with these options and the plugin, and the same output."""
    model = randomised(SAResNet(50, **copy.deepcopy(options)))
    plugins = [PLUGIN, *options.pop('plugins', [])]
    plain = ResNet(50, plugins=plugins, **options)
    plain.load_state_dict(model.state_dict(), strict=True)
    plain.eval()
    x = image(dtype=torch.float64)
    assert_same_outputs(model.double()(x), plain.double()(x))


def test_out_indices_and_depth_152():
    model = SAResNet(152, out_indices=(1, 3)).eval()
    assert [len(getattr(model, f'layer{i}')) for i in range(1, 5)] == [3, 8, 36, 3]
    assert [tuple(y.shape) for y in model(image())] == [(1, 512, 8, 8), (1, 2048, 2, 2)]


def test_initial_weights():
    """MMDetection's initialisation leaves the attention at its identity-like start."""
    model = SAResNet(50)
    model.init_weights()
    sa = model.layer3[2].sa
    assert sa.cweight.eq(0).all()
    assert sa.sbias.eq(1).all()
    assert sa.gn.weight.eq(1).all()
    assert model.layer3[2].bn3.weight.eq(0).all()


def test_weights_of_torchvision_without_torchvision(tmp_path, monkeypatch):
    (tmp_path / 'torchvision.py').write_text('raise RuntimeError("torchvision::nms is missing")')
    monkeypatch.syspath_prepend(tmp_path)
    model = SAResNet(50, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'))
    with pytest.raises(ImportError, match=r'matches your torch\. Or give a downloaded file'):
        model.init_weights()


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=['deepcopy', 'pickle'])
def test_copies(clone):
    model = randomised(SAResNet(50))
    assert_same_outputs(model(image()), clone(model)(image()), rtol=0, atol=0)


def test_compiled_forward():
    model = randomised(SAResNet(50, num_stages=1, strides=(1, ), dilations=(1, ),
                                out_indices=(0, )))
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(image())
    assert_same_outputs(compiled, model(image()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype):
    """Trains under autocast; the attention gives on the dtype it was given."""
    model = randomised(SAResNet(50)).train()
    seen = []
    model.layer1[0].sa.register_forward_hook(
        lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    with torch.autocast('cpu', dtype):
        outputs = model(image())
    sum(y.float().square().mean() for y in outputs).backward()
    assert seen == [(dtype, dtype)]
    for y, expected in zip(outputs, model(image()), strict=True):
        assert (y.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize('backbone', [
    lambda plugins: ResNeXt(depth=50, groups=32, base_width=4, plugins=plugins),
    lambda plugins: ResNeSt(depth=50, plugins=plugins),
    lambda plugins: RegNet('regnetx_3.2gf', plugins=plugins),
], ids=['ResNeXt', 'ResNeSt', 'RegNet'])
def test_plugin_in_other_backbones(backbone):
    model = backbone([dict(
        cfg=dict(type='ShuffleAttention', groups=8), stages=(False, True, True, True),
        position='after_conv3')])
    assert not hasattr(model.layer1[0], 'sa')
    assert model.layer2[0].sa.groups == 8
    model.eval()
    assert all(y.isfinite().all() for y in model(image()))


@pytest.mark.parametrize('depth', [18, 34, 51, '50'])
def test_depth_without_bottlenecks(depth):
    with pytest.raises(ValueError, match=rf'depth must be one of \[50, 101, 152\], got {depth!r}'):
        SAResNet(depth)


@pytest.mark.parametrize(('attention', 'message'), [
    ('SqueezeExcite', "unknown attention type 'SqueezeExcite': use one of CBAM, Eff"),
    (dict(groups=8), 'a config with a "type"'), (None, 'got None'),
    (dict(type='ShuffleAttention', groups=48), r'in_channels=256 is not divisible by .* = 96'),
])
def test_wrong_attention(attention, message):
    with pytest.raises(ValueError, match=message):
        AttentionResNet(50, attention)
