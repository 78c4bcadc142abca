"""Which implementation computes, and what becomes of the operator in PyTorch's compilers."""
from collections import Counter

import pytest
import torch
from fused import (
    computed_by_onnxruntime,
    forced,
    random_input,
    random_parameters,
    require,
    shuffle_attention,
)

import sa_mmdet.ops
from sa_mmdet.models import SAResNet, ShuffleAttention
from sa_mmdet.ops import cpp, dispatch, triton_launch

OPERATOR = 'sa_mmdet.shuffle_attention.default'


@pytest.fixture
def x():
    return random_input((2, 16, 6, 5), torch.float32)


@pytest.fixture
def parameters():
    return random_parameters(4)


@pytest.fixture
def layer():
    layer = ShuffleAttention(16, groups=2)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.fixture
def called(monkeypatch):
    """Counts the calls of implementations."""
    calls = Counter()

    def count(name, module):
        forward = module.forward

        def counted(*args, **kwargs):
            calls[name] += 1
            return forward(*args, **kwargs)

        monkeypatch.setattr(module, 'forward', counted)

    sa_mmdet.ops.implementations()  # which tries them out
    count('cpu', cpp)
    count('triton', triton_launch)
    return calls


def operators(graph_module):
    return Counter(str(node.target) for node in graph_module.graph.nodes
                   if node.op == 'call_function')


def test_implementations_and_why_not():
    reasons = sa_mmdet.ops.implementations()
    assert list(reasons) == ['reference', 'cpu', 'triton']
    assert reasons['reference'] is None
    assert all(reason is None or len(reason) > 10 for reason in reasons.values())


def test_cpp_is_used_on_cpu(x, parameters, called):
    require('cpu')
    shuffle_attention(x, *parameters, 2)
    assert set(called) == {'cpu'}


@pytest.mark.parametrize('name', ['reference', 'cpu', 'triton'])
@pytest.mark.parametrize('by', ['argument', 'variable'])
def test_forced(x, parameters, called, force_ops, name, by):
    require(name)
    if by == 'variable':
        force_ops(name)
    shuffle_attention(x, *parameters, 2, implementation=name if by == 'argument' else None)
    assert set(called) == {name} - {'reference'}


def test_argument_beats_variable(x, parameters, called, force_ops):
    force_ops('cpu')
    shuffle_attention(x, *parameters, 2, implementation='reference')
    assert not called


def test_unknown_name(x, parameters, force_ops):
    with pytest.raises(ValueError, match=r"implementation='cuda'.*reference, cpu, triton"):
        shuffle_attention(x, *parameters, 2, implementation='cuda')
    force_ops('fast')
    with pytest.raises(ValueError, match=r"SA_MMDET_OPS='fast'.*reference, cpu, triton"):
        shuffle_attention(x, *parameters, 2)


def test_forced_but_unavailable(x, parameters, monkeypatch):
    for remembered in ('_problems', '_chosen'):
        monkeypatch.setattr(dispatch, remembered, {})
    monkeypatch.setattr(cpp, 'capability', lambda: (None, 'it was not built'))
    with pytest.raises(RuntimeError, match="implementation='cpu' cannot be used: it was not built"):
        shuffle_attention(x, *parameters, 2, implementation='cpu')


def test_forced_for_a_tensor_it_does_not_take(x, parameters):
    with pytest.raises(RuntimeError, match=r'does not compute in torch\.float64'):
        shuffle_attention(x.double(), *parameters, 2, implementation='triton')


@pytest.mark.parametrize(('shape', 'groups', 'message'), [
    ((16, 6, 5), 2, r'x must be \(N, C, H, W\)'),
    ((2, 15, 6, 5), 2, '15 channels, which is not divisible by 2'),
    ((2, 16, 6, 0), 2, r'planes without pixels.*got shape \(2, 16, 6, 0\)'),
    ((2, 16, 6, 5), 0, 'not divisible by'),
    ((2, 16, 6, 5), 4, r'must have C / \(2 \* groups\) = 2 values'),
], ids=str)
def test_bad_arguments(parameters, shape, groups, message):
    with pytest.raises(ValueError, match=message):
        shuffle_attention(torch.zeros(shape), *parameters, groups)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('implementation', ['cpu', 'reference'])
def test_operator_is_what_torch_library_demands(implementation, layout):
    """Schema, fake implementation and autograd, as torch checks them."""
    require(implementation)
    x = random_input((2, 8, 4, 3), torch.float32, layout).requires_grad_()
    torch.library.opcheck(torch.ops.sa_mmdet.shuffle_attention.default, (
        x, None, *[None] * 4, *random_parameters(2), 2, 1e-5, 0., implementation))


@pytest.mark.parametrize('implementation', ['cpu', 'reference'])
@pytest.mark.parametrize('input_gradients', [True, False])
@pytest.mark.parametrize('bottleneck', [True, False])
def test_backward_is_what_torch_library_demands(implementation, bottleneck, input_gradients):
    require(implementation)
    x, dy = (random_input((2, 8, 4, 3), torch.float32, seed=seed) for seed in (1, 2))
    stats = torch.zeros(2, 8, 2, dtype=torch.float64)
    parameters = [parameter.detach() for parameter in random_parameters(2)]
    torch.library.opcheck(torch.ops.sa_mmdet.shuffle_attention_backward.default, (
        dy, x, dy if bottleneck else None, stats, *[None] * 4, *parameters, 2, 1e-5, 0.,
        input_gradients, implementation))


@pytest.mark.parametrize('implementation', ['cpu', 'reference'])
def test_compiled_gradients(layer, x, implementation, force_ops):
    """The operator, also where it computes the formula, has the gradients of the formula."""
    require(implementation)
    force_ops(implementation)
    tensors = [x.requires_grad_(), *layer.parameters()]
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    actual = torch.autograd.grad(compiled(x).square().sum(), tensors)
    force_ops('reference')
    expected = torch.autograd.grad(layer(x).square().sum(), tensors)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope='module')
def network():
    return SAResNet(50).eval()


def test_compiled_network_has_one_node_a_block(network):
    x, graphs = torch.randn(1, 3, 32, 32), []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    with torch.no_grad():
        actual = torch.compile(network, fullgraph=True, backend=backend)(x)
        torch.testing.assert_close(actual, network(x))
    assert [operators(graph)[OPERATOR] for graph in graphs] == [16]


@pytest.mark.slow
@pytest.mark.parametrize('train', [False, True])
def test_network_compiled_by_inductor(network, train):
    x = torch.randn(1, 3, 64, 64)
    network.train(train)
    with torch.set_grad_enabled(train):
        actual = torch.compile(network, fullgraph=True)(x)
        torch.testing.assert_close(actual, network(x), rtol=1e-3, atol=1e-4)
    if train:
        sum(feature.sum() for feature in actual).backward()


def test_exported_network_has_one_node_a_block(network):
    x = torch.randn(1, 3, 32, 32)
    program = torch.export.export(network, (x, ))
    assert operators(program.graph_module)[OPERATOR] == 16
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), network(x))


def test_exported_with_dynamic_shape(layer, x):
    n, h, w = (torch.export.Dim(name, min=2, max=512) for name in 'nhw')
    program = torch.export.export(layer, (x, ), dynamic_shapes=({0: n, 2: h, 3: w}, ))
    other = torch.randn(3, 16, 9, 11)
    torch.testing.assert_close(program.module()(other), layer(other))


def test_traced_module_needs_no_operator(layer, x):
    traced = torch.jit.trace(layer, x)
    assert 'sa_mmdet::' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), layer(x))


def test_traced_on_meta_tensors(layer, x):
    layer, x = layer.to('meta'), x.to('meta')
    assert layer(x).shape == x.shape
    assert torch.jit.trace(layer, x, check_trace=False)(x).shape == x.shape


def test_forward_mode(layer, x):
    tangent = torch.ones_like(x)
    _, actual = torch.func.jvp(layer, (x,), (tangent,))
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        y = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(y).tangent, actual)


def test_batched_gradients(layer, x):
    y = layer(x.requires_grad_())
    several = torch.autograd.grad(y, x, torch.stack([y, -y]), is_grads_batched=True,
                                  retain_graph=True)[0]
    torch.testing.assert_close(several[0], torch.autograd.grad(y, x, y)[0])
    torch.testing.assert_close(several[0], -several[1])


def test_functorch(layer, x):
    per_sample = torch.func.vmap(torch.func.grad(lambda x: layer(x[None]).sum()))(x)
    x.requires_grad_()
    torch.testing.assert_close(per_sample, torch.autograd.grad(layer(x).sum(), x)[0])


@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx(layer, x, dynamo):
    actual = computed_by_onnxruntime(layer.eval(), (x, ), dynamo)
    torch.testing.assert_close(actual, layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('capability', ['avx2', 'default'])
def test_an_older_cpu_loads_an_older_library(capability, monkeypatch):
    with forced(f'cpu-{capability}'):
        monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', capability.upper)
        assert cpp.capability.__wrapped__() == (capability, None)


def test_an_unknown_cpu_loads_the_plain_library(monkeypatch):
    with forced('cpu-default'):
        monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'SVE256')
        assert cpp.capability.__wrapped__() == ('default', None)
