"""Networks as they are deployed: the same function, without what only training needs."""
import copy
import io
import pickle
import warnings

import pytest
import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones import ResNet, ResNeXt
from mmdet.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from networks import assert_same_outputs, image, randomised
from openvino_process import outputs_of
from sa_mmdet.models import (
    AttentionResNet,
    ConversionError,
    SAResNet,
    ShuffleAttention,
    for_deployment,
)
from sa_mmdet.models.gated_conv import GatedConv2d
from sa_mmdet.ops import cpp, implementations

SLIM = dict(base_channels=16, attention=dict(groups=4))
PLUGIN = dict(cfg=dict(type='ShuffleAttention', groups=8), position='after_conv3')
FORBIDDEN = {'Transpose', 'Reshape', 'Split', 'Concat', 'Gather', 'Slice', 'InstanceNormalization'}


def features(network, x):
    with torch.no_grad():
        return network(x)


def assert_same_function(network, deployed, force_ops):
    """In place, and in PyTorch's operators, which are what is exported."""
    x = image(64, torch.float64)
    expected = features(network, x)
    for implementation in (None, 'reference'):
        if implementation:
            force_ops(implementation)
        for a, e in zip(features(deployed, x), expected, strict=True):
            assert (a - e).abs().max() <= 1e-12 * e.abs().max()


def gated(network):
    return [module for module in network.modules() if isinstance(module, GatedConv2d)]


@pytest.mark.parametrize('options', [
    dict(), dict(depth=101), dict(depth=152), dict(deep_stem=True, avg_down=True),
    dict(style='caffe'), *(dict(attention=dict(groups=groups)) for groups in (1, 2, 32, 128)),
    dict(attention=dict(gn=False)), dict(attention=dict(shuffle=False)),
    dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 2)),
    dict(with_cp=True, channels_last=True),
    dict(plugins=[dict(cfg=dict(type='CBAM'), position='after_conv3'),
                  dict(cfg=dict(type='SqueezeExcitation'), position='after_conv2')]),
    dict(base_channels=16, attention=dict(groups=4), dcn=dict(type='DCNv2', deform_groups=1),
         stage_with_dcn=(False, True, True, True)),
], ids=str)
def test_same_function(options, force_ops):
    network = randomised(SAResNet(**dict(depth=50) | options)).double()
    deployed = for_deployment(network)
    assert_same_function(network, deployed, force_ops)
    assert len(gated(deployed)) == sum(len(getattr(network, name)) for name in network.res_layers)
    if 'dcn' not in options and 'plugins' not in options:
        assert not any(isinstance(module, _BatchNorm) for module in deployed.modules())


@pytest.mark.parametrize('build', [
    lambda: ResNet(50, plugins=[PLUGIN]),
    lambda: ResNet(50, plugins=[PLUGIN | dict(stages=(False, True, False, True))]),
    lambda: ResNeXt(depth=50, groups=32, base_width=4, plugins=[PLUGIN]),
    lambda: AttentionResNet(50, 'EfficientChannelAttention'),
    lambda: ResNet(18),
], ids=['plugin', 'in two stages', 'ResNeXt', 'other attention', 'none'])
def test_same_function_of_others(build, force_ops):
    network = randomised(build()).double()
    deployed = for_deployment(network)
    assert_same_function(network, deployed, force_ops)
    assert not any(isinstance(module, _BatchNorm) for module in deployed.modules())
    assert not any(hasattr(module, 'cweight') for module in deployed.modules())


class Other(ShuffleAttention):
    """Somebody's own."""

    def attend(self, x):
        return 2 * super().attend(x)


def test_what_is_not_known_stays(force_ops):
    """A layer derived from ours, and a convolution whose norm comes before it."""
    conv = dict(type=Before)
    network = SAResNet(50, **SLIM, plugins=[dict(cfg=conv, position='after_conv3', stages=(
        True, False, False, False))])
    network.layer2[0].sa = Other(128, groups=4)
    randomised(network).double()
    deployed = for_deployment(network)
    assert isinstance(deployed.layer2[0].sa, Other)
    assert len(gated(deployed)) == 15
    assert_same_function(network, deployed, force_ops)


class Before(ConvModule):
    """As a plugin."""

    _abbr_ = 'before'

    def __init__(self, in_channels):
        super().__init__(in_channels, in_channels, 1, norm_cfg=dict(type='BN'),
                         order=('norm', 'conv', 'act'))


@pytest.mark.parametrize('implementation', [None, 'reference'])
def test_means_far_beyond_the_deviation(implementation, force_ops):
    """As trained channels have them that are almost constant: float32 has digits for them."""
    network = randomised(SAResNet(50, **SLIM))
    for block in network.modules():
        if hasattr(block, 'norm3'):
            block.norm3.weight.data.fill_(0.01)
            block.norm3.bias.data.normal_(0, 10, generator=torch.Generator().manual_seed(0))
    expected = features(copy.deepcopy(network).double(), image(64, torch.float64))
    deployed = for_deployment(network)
    if implementation:
        force_ops(implementation)
    for a, e in zip(features(deployed, image()), expected, strict=True):
        assert (a - e).abs().max() <= 1e-5 * e.abs().max()


def test_gradients_of_the_input_are_numbers():
    deployed = for_deployment(randomised(SAResNet(50, **SLIM)))
    for conv in gated(deployed):
        conv.constant.fill_(-200)  # exp(200) is infinite in float32
    x = image().requires_grad_()
    sum(y.sum() for y in deployed(x)).backward()
    assert x.grad.isfinite().all()


def test_the_network_is_left_as_it_was():
    network = randomised(SAResNet(50, **SLIM))
    network.train()
    before = copy.deepcopy(network.state_dict())
    deployed = for_deployment(network)
    assert network.training
    assert not deployed.training
    assert all(parameter.requires_grad for parameter in network.layer4.parameters())
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    assert_same_outputs(list(before.values()), list(network.state_dict().values()), rtol=0, atol=0)


@pytest.mark.parametrize(('build', 'message'), [
    (lambda: SAResNet(50, dict(groups=4, fc='conv'), base_channels=16),
     "layer1.0.sa has fc='conv'"),
    (lambda: SAResNet(50, dict(groups=4, fc='none'), base_channels=16),
     "layer1.0.sa has fc='none'"),
    (lambda: SAResNet(50, **SLIM, norm_cfg=dict(type='GN', num_groups=4)),
     'layer1.0.gn3 is GroupNorm'),
    (lambda: SAResNet(50, **SLIM, conv_cfg=dict(type='DCNv2', deform_groups=1)),
     'layer1.0.conv3 is ModulatedDeformConv2dPack'),
    (lambda: nn.Sequential(nn.Conv2d(3, 3, 1)), 'Sequential has no ResNet'),
])
def test_what_cannot_be_deployed_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        for_deployment(build())


def test_names_in_a_detector():
    detector = nn.Module()
    detector.backbone = SAResNet(50, dict(groups=4, fc='none'), base_channels=16)
    with pytest.raises(ConversionError, match=r'backbone\.layer1\.0\.sa has'):
        for_deployment(detector)


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict],
                         ids=['torch', 'mmengine'])
def test_deployed_backbone_loads_all_weights(load):
    """Deployed, trained, and of a plain ResNet, under a prefix too."""
    trained, plain = (randomised(network).double() for network in
                      (SAResNet(50, **SLIM), ResNet(50, base_channels=16)))
    model, x = nn.Module(), image(64, torch.float64)
    model.backbone = MODELS.build(dict(type='SAResNet', depth=50, deploy=True, **SLIM)).double()
    for network, source in ((trained, for_deployment(trained)), (trained, trained),
                            (plain, plain)):
        load(model, {f'backbone.{key}': value for key, value in source.state_dict().items()})
        model.eval()
        for a, e in zip(features(model.backbone, x), features(network, x), strict=True):
            assert (a - e).abs().max() <= 1e-12 * e.abs().max()


@pytest.mark.parametrize('layer', ['EfficientChannelAttention', 'SqueezeExcitation', 'CBAM'])
def test_deployed_backbone_with_other_attention(layer):
    cfg = dict(type='AttentionResNet', depth=50, attention=layer, base_channels=16)
    # of 64 pixels, the last bit moves SqueezeExcitation's features by 1e-12
    trained, x = randomised(MODELS.build(cfg)).double(), image(96, torch.float64)
    deployed = MODELS.build(dict(cfg, deploy=True)).double()
    for source in (trained, for_deployment(trained)):
        deployed.load_state_dict(source.state_dict())
        for a, e in zip(features(deployed.eval(), x), features(trained, x), strict=True):
            assert (a - e).abs().max() <= 1e-12 * e.abs().max()


def test_deployed_backbone_leaves_what_is_not_its_own():
    """A classifier's layers, checkpoints without it, the random numbers; and can be pickled."""
    deployed = pickle.loads(pickle.dumps(SAResNet(50, deploy=True, **SLIM)))
    trained = SAResNet(50, **SLIM)
    before = torch.get_rng_state()  # which loading leaves alone
    assert deployed.load_state_dict({}, strict=False).unexpected_keys == []
    found = deployed.load_state_dict(
        trained.state_dict() | {'fc.bias': torch.zeros(1)}, strict=False)
    assert found.unexpected_keys == ['fc.bias']
    assert not found.missing_keys
    assert torch.equal(torch.get_rng_state(), before)


def test_other_weights_are_refused():
    deployed, trained = (SAResNet(50, **SLIM, deploy=deploy) for deploy in (True, False))
    with pytest.raises(ConversionError, match=r'is deployed\. Build the backbone with deploy=True'):
        trained.load_state_dict(deployed.state_dict())
    with pytest.raises(ConversionError, match=r'lacks .* and \d+ more.*--deploy'):
        deployed.load_state_dict({'layer1.0.conv1.weight': trained.layer1[0].conv1.weight})
    ablated = SAResNet(50, dict(groups=4, gn=False), base_channels=16, deploy=True)
    with pytest.raises(RuntimeError, match='unnormalised'):
        ablated.load_state_dict(deployed.state_dict())
    with pytest.raises(TypeError, match='deploy must be True or False, got 1'):
        SAResNet(50, deploy=1)


@pytest.mark.parametrize('size', [None, 64], ids=['any size', 'one size'])
@pytest.mark.parametrize('network', [
    lambda: SAResNet(50, **SLIM),
    lambda: ResNet(50, base_channels=16, plugins=[PLUGIN | dict(
        cfg=dict(type='ShuffleAttention', groups=4))])], ids=['SAResNet', 'plugin'])
def test_exported_graph(network, size):
    """Nothing in it moves a channel, and onnxruntime computes the same."""
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    runtime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    network = randomised(network())
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        torch.onnx.export(
            for_deployment(network), (image(64), ), file, dynamo=False, input_names=['x'],
            dynamic_axes=None if size else {'x': {0: 'n', 2: 'h', 3: 'w'}})
    operators = [node.op_type for node in onnx.load_from_string(file.getvalue()).graph.node]
    assert not FORBIDDEN & set(operators)
    assert operators.count('ReduceL2') == 16
    assert 'BatchNormalization' not in operators
    x = image(size or 96)
    session = runtime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    for a, e in zip(session.run(None, {'x': x.numpy()}), features(network, x), strict=True):
        assert (torch.from_numpy(a) - e).abs().max() <= 1e-4 * e.abs().max()


def test_openvino_computes_the_same(tmp_path):
    network = randomised(SAResNet(50, **SLIM))
    file = tmp_path / 'network.onnx'
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        torch.onnx.export(for_deployment(network), (image(), ), str(file), dynamo=False)
    outputs = outputs_of(file, image().numpy(), tmp_path)
    for a, e in zip(outputs, features(network, image()), strict=True):
        assert abs(a - e.numpy()).max() <= 1e-4 * e.abs().max()


@pytest.mark.skipif(implementations()['cpu'] is not None, reason='no C++ operator')
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
def test_inference_absorbs_for_the_time_of_a_call(monkeypatch, layout):
    """Of SAResNet as it was trained: the same function, and its weights stay what they are."""
    calls, gate_ = [], cpp.gate_
    monkeypatch.setattr(cpp, 'gate_', lambda *args: calls.append(args) or gate_(*args))
    network = randomised(SAResNet(50, **SLIM)).double().to(memory_format=layout)
    before = copy.deepcopy(network.state_dict())
    x = image(128, torch.float64)
    with torch.enable_grad():
        expected = network(x)
    assert not calls
    actual = features(network, x)
    assert calls  # of those blocks whose maps are larger than their weights
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= 1e-12 * e.abs().max()
    assert_same_outputs(list(before.values()), list(network.state_dict().values()), rtol=0, atol=0)
    count = len(calls)
    network.layer1[0].norm3.register_forward_hook(lambda *args: None)
    features(network, x)
    assert len(calls) == 2 * count - 1


def test_hooks_of_a_deployed_block_are_called():
    network = for_deployment(randomised(SAResNet(50, **SLIM)))
    expected = features(network, image())
    seen = []
    network.layer1[0].conv3.register_forward_hook(
        lambda _, inputs, y: seen.append((len(inputs), bool((y < 0).any()))))
    assert_same_outputs(features(network, image()), expected, rtol=1e-4, atol=1e-3)
    assert seen == [(1, True)]  # without the identity, before the addition and the ReLU
