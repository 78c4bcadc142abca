"""The bottleneck whose end is one operator, and when it is not."""
import copy
import re
import weakref
from contextlib import contextmanager

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from torch import nn

from networks import assert_same_outputs, randomised
from sa_mmdet.models import AttentionResNet, SAResNet
from sa_mmdet.models.backbones import attention_bottleneck
from sa_mmdet.models.backbones.attention_bottleneck import AttentionBottleneck
from sa_mmdet.ops import implementations

pytestmark = pytest.mark.skipif(
    implementations()['cpu'] is not None, reason=f'no C++ operator: {implementations()["cpu"]}')


def bottleneck(stride=1, style='pytorch', **options) -> AttentionBottleneck:
    """The first block of the second stage of an SA-ResNet, with random weights."""
    plugins = options.pop('plugins', [])
    attention = dict(type='ShuffleAttention') | options.pop('attention', {})
    network = AttentionResNet(50, attention, plugins=plugins, style=style, **options)
    return randomised(network.layer2[0])


def features(dtype=torch.float64, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 256, 6, 5, generator=generator, dtype=dtype)


@contextmanager
def counted_fusions():
    """Counts the calls of the fused operator in a list."""
    calls, compute = [], attention_bottleneck.compute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_bottleneck, 'compute',
                      lambda *args: calls.append(1) or compute(*args))
        yield calls


def fuses(block, x=None) -> bool:
    with counted_fusions() as calls:
        block(features(torch.float32) if x is None else x)
    return bool(calls)


@contextmanager
def unfused():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttentionBottleneck, '_fusible_attention', lambda *args: None)
        yield


def outputs_and_gradients(block, x):
    x = x.clone().requires_grad_()
    y = block(x)
    y.square().sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in block.parameters())]
    assert all(gradient is not None for gradient in gradients)
    block.zero_grad(set_to_none=True)
    return y, *gradients


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('options', [
    {}, dict(with_cp=True), dict(style='caffe'), dict(avg_down=True),
    dict(plugins=[dict(cfg=dict(type='SqueezeExcitation'), position='after_conv2')]),
    dict(attention=dict(groups=8, eps=1e-3)),
], ids=lambda options: next(iter(options), 'default'))
def test_equals_the_plain_sequence(options, layout):
    """Output and all gradients, in float64 to 1e-9 of the largest value."""
    block, x = bottleneck(**options).double(), features().to(memory_format=layout)
    assert fuses(block, x)
    actual = outputs_and_gradients(block, x)
    with unfused():
        assert not fuses(block, x)
        expected = outputs_and_gradients(block, x)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-9 * e.abs().max().item())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype):
    block, x = bottleneck(), features(torch.float32)
    with torch.autocast('cpu', dtype):
        assert fuses(block, x)
        assert block(x).dtype == dtype
        actual = outputs_and_gradients(block, x)
        with unfused():
            expected = outputs_and_gradients(block, x)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert (a - e).float().norm() <= 30 * torch.finfo(dtype).eps * e.float().norm()


@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16], ids=str)
def test_network_in_16_bits(half):
    block = bottleneck().to(half)
    assert fuses(block, features(half))


@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
def test_fuses_in_training_with_frozen_statistics(norm):
    network = SAResNet(50, norm_cfg=dict(type=norm), norm_eval=True).train()
    with counted_fusions() as calls:
        network(torch.randn(1, 3, 32, 32))
    assert len(calls) == 16


@pytest.mark.parametrize('options', [
    dict(norm_cfg=dict(type='GN', num_groups=32)),
    dict(attention=dict(gn=False)), dict(attention=dict(shuffle=False)),
    dict(attention=dict(fc='none')), dict(attention=dict(type='SqueezeExcitation')),
    dict(plugins=[dict(cfg=dict(type='SqueezeExcitation'), position='after_conv3')]),
], ids=str)
def test_other_layers_are_not_fused(options):
    assert not fuses(bottleneck(**options))


def test_batch_statistics_are_not_fused():
    block = bottleneck()
    block.bn3.train()
    assert not fuses(block)
    block.eval()
    assert fuses(block)


def test_batch_norm_without_what_the_operator_needs():
    for options in (dict(affine=False), dict(track_running_stats=False)):
        block = bottleneck()
        block.bn3 = nn.BatchNorm2d(512, **options).eval()
        assert not fuses(block)
    block = bottleneck()
    block.bn3.register_parameter('bias', None)
    assert not fuses(block)


def test_wrapped_downsampling_is_called():
    """A wrapper may have to do something before, as FullyShardedDataParallel gathers weights."""

    class Wrapper(nn.Sequential):

        def forward(self, x):
            return torch.zeros_like(super().forward(x))

    block, x = bottleneck(), features(torch.float32)
    expected = block(x)
    block.downsample = Wrapper(*block.downsample)
    assert fuses(block, x)
    assert not torch.equal(block(x), expected)


@pytest.mark.parametrize(('name', 'register'), [
    *((name, f'register_forward_{hook}') for name in ('bn3', 'sa', 'relu')
      for hook in ('hook', 'pre_hook')),
    # PyTorch refuses one on the others, whose results are changed in place.
    ('bn3', 'register_full_backward_hook'), ('bn3', 'register_full_backward_pre_hook'),
])
def test_hooks_are_honoured(name, register):
    """A hook is called as in the plain sequence; without it its end is fused again."""
    block, called = bottleneck(), []
    handle = getattr(getattr(block, name), register)(lambda *args: called.append(1))
    x = features(torch.float32).requires_grad_()
    with counted_fusions() as calls:
        block(x).sum().backward()
    assert not calls
    assert len(called) == (3 if name == 'relu' else 1)
    handle.remove()
    assert fuses(block)


def test_hook_of_the_output_changes_it():
    block, x = bottleneck(), features(torch.float32)
    before = block(x)
    block.sa.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    torch.testing.assert_close(block(x), block.relu(block.downsample(x)))
    assert not torch.equal(block(x), before)


def test_global_hooks_are_honoured():
    block, seen = bottleneck(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *args: seen.append(module))
    try:
        assert not fuses(block)
    finally:
        handle.remove()
    assert block.bn3 in seen
    assert block.sa in seen


def test_replaced_forward_is_called():
    block, x = bottleneck(), features(torch.float32)
    block.sa.forward = torch.zeros_like
    torch.testing.assert_close(block(x), block.relu(block.downsample(x)))


def test_formula_is_not_fused(force_ops):
    force_ops('reference')
    assert not fuses(bottleneck())


def test_the_input_of_the_last_convolution_is_let_go(monkeypatch):
    """It would be a fifth tensor in memory beside the four that the end of a bottleneck needs."""
    block, seen, alive = bottleneck(), [], []
    block.conv3.register_forward_pre_hook(lambda conv, args: seen.append(weakref.ref(args[0])))
    compute = attention_bottleneck.compute
    monkeypatch.setattr(attention_bottleneck, 'compute',
                        lambda *args: alive.append(seen[0]() is not None) or compute(*args))
    with torch.no_grad():
        block(features(torch.float32))
    assert alive == [False]


def test_folded_batch_norm():
    """After MMDetection's fuse_conv_bn there is no bn3; the rest is fused still."""
    block, x = bottleneck().double(), features()
    folded = fuse_conv_bn(copy.deepcopy(block))
    assert isinstance(folded.bn3, nn.Identity)
    assert fuses(folded, x)
    torch.testing.assert_close(folded(x), block(x))


def test_frozen_parts_get_no_gradient():
    block, x = bottleneck(), features(torch.float32)
    expected = outputs_and_gradients(block, x)
    names = [name for name, _ in block.named_parameters()]
    for frozen in ('bn3', 'sa', 'conv3', ''):
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen or 'sa') and bool(frozen))
        if not frozen:
            block.sa.requires_grad_(True)
        block(x).square().sum().backward()
        for (name, parameter), gradient in zip(block.named_parameters(), expected[2:], strict=True):
            assert (parameter.grad is not None) == parameter.requires_grad, name
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, gradient)
        block.zero_grad(set_to_none=True)
    assert names


def test_distributed_data_parallel(tmp_path):
    """Every parameter gets its gradient, also where DDP sees the first of them."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        block, x = bottleneck(), features(torch.float32)
        expected = outputs_and_gradients(block, x)
        parallel = nn.parallel.DistributedDataParallel(block)
        with counted_fusions() as calls:
            parallel(x).square().sum().backward()
        assert calls
        assert_same_outputs(expected[2:], [parameter.grad for parameter in block.parameters()])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('hooked', [False, True])
def test_compiled(train, hooked):
    """One operator in a graph without breaks; with a hook, which doubles, the plain sequence."""
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph

    block, x = bottleneck(), features(torch.float32)
    if hooked:
        block.bn3.register_forward_hook(lambda module, args, out: 2 * out)
    with torch.set_grad_enabled(train):
        actual = torch.compile(block, fullgraph=True, backend=backend)(x)
        torch.testing.assert_close(actual, block(x))
    (arguments, ), = (re.findall(r'shuffle_attention\.default\]\(args = \((.*?)\)', graph)
                      for graph in graphs)
    assert (arguments.split(', ')[1] == 'None') == hooked  # the identity


def test_traced_as_the_plain_sequence():
    block, x = bottleneck().double(), features()
    traced = torch.jit.trace(block, x)
    assert 'sa_mmdet::' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), block(x))
