"""Which implementation computes, and what becomes of the operator in PyTorch's compilers."""
from collections import Counter

import pytest
import torch
from fused import (
    PLACES,
    attend,
    computed_by_onnxruntime,
    forced,
    operands_around,
    random_batch_norm,
    random_input,
    random_operands,
    random_parameters,
    require,
)

import sa_mmdet.ops
from sa_mmdet.models import SAResNet, ShuffleAttention
from sa_mmdet.ops import cpp, dispatch, fused_bn_sa_add_relu, triton_launch

OPERATOR = 'sa_mmdet.shuffle_attention.default'
IN_EVERY_PLACE = pytest.mark.parametrize('place', PLACES)
CPU_AND_REFERENCE = pytest.mark.parametrize('implementation', ['cpu', 'reference'])


class AfterConv3(torch.nn.Module):
    """The operator with its parameters, of two inputs."""

    def __init__(self, with_batch_norm):
        super().__init__()
        self.batch_norm = None
        if with_batch_norm:
            self.batch_norm = self.parameters_of(random_batch_norm(16))
        self.attention = self.parameters_of(random_parameters(4))

    @staticmethod
    def parameters_of(tensors):
        return torch.nn.ParameterList(
            torch.nn.Parameter(tensor.detach(), tensor.requires_grad) for tensor in tensors)

    def forward(self, z, identity):
        batch_norm = self.batch_norm and tuple(self.batch_norm)
        return fused_bn_sa_add_relu(z, identity, batch_norm, *self.attention, groups=2)


@pytest.fixture(params=PLACES)
def layer(request):
    if request.param != 'alone':
        return AfterConv3(with_batch_norm=request.param == 'bottleneck')
    layer = ShuffleAttention(16, groups=2)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.fixture
def inputs(layer):
    return tuple(random_input((2, 16, 6, 5), torch.float32, seed=seed)
                 for seed in ((1, ) if isinstance(layer, ShuffleAttention) else (1, 2)))


@pytest.fixture
def operands():
    return operands_around(random_input((2, 16, 6, 5), torch.float32), 'alone')


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


def test_cpp_is_used_on_cpu(operands, called):
    require('cpu')
    attend(operands)
    assert set(called) == {'cpu'}


@pytest.mark.parametrize('name', ['reference', 'cpu', 'triton'])
@pytest.mark.parametrize('by', ['argument', 'variable'])
def test_forced(operands, called, force_ops, name, by):
    require(name)
    if by == 'variable':
        force_ops(name)
    attend(operands, name if by == 'argument' else None)
    assert set(called) == {name} - {'reference'}


def test_argument_beats_variable(operands, called, force_ops):
    force_ops('cpu')
    attend(operands, 'reference')
    assert not called


def test_unknown_name(operands, force_ops):
    with pytest.raises(ValueError, match=r"implementation='cuda'.*reference, cpu, triton"):
        attend(operands, 'cuda')
    force_ops('fast')
    with pytest.raises(ValueError, match=r"SA_MMDET_OPS='fast'.*reference, cpu, triton"):
        attend(operands)


def test_forced_but_unavailable(operands, monkeypatch):
    for remembered in ('_problems', '_chosen'):
        monkeypatch.setattr(dispatch, remembered, {})
    monkeypatch.setattr(cpp, 'capability', lambda: (None, 'it was not built'))
    with pytest.raises(RuntimeError, match="implementation='cpu' cannot be used: it was not built"):
        attend(operands, 'cpu')


def test_forced_for_a_tensor_it_does_not_take(operands):
    with pytest.raises(RuntimeError, match=r'does not compute in torch\.float64'):
        attend(operands.double(), 'triton')


BAD_ARGUMENTS = [
    (dict(z=torch.zeros(8, 4, 3)), r'x must be \(N, C, H, W\)'),
    (dict(z=torch.zeros(2, 7, 4, 3)), '7 channels, which is not divisible by 2'),
    (dict(z=torch.zeros(2, 8, 4, 0)), r'planes without pixels.*got shape \(2, 8, 4, 0\)'),
    (dict(groups=0), 'not divisible by'),
    (dict(groups=3), '8 channels, which is not divisible by 2'),
    (dict(groups=4), r'must have C / \(2 \* groups\) = 1 values'),
]
BAD_SURROUNDINGS = [
    (dict(identity=torch.zeros(2, 8, 4, 1)), r'identity must have the shape of z, .*4, 3\D.*4, 1'),
    (dict(identity=torch.zeros(2, 8, 4, 3).double()), r'the dtype of z, torch\.float32, got .*64'),
    (dict(identity=torch.zeros(2, 8, 4, 3, device='meta')), 'the device of z, cpu, got meta'),
    (dict(batch_norm=random_batch_norm(4)), r'weight must have C = 8 values, got shape \(4,\)'),
]


@pytest.mark.parametrize(('place', 'change', 'message'), [
    *(('alone', *bad) for bad in BAD_ARGUMENTS),
    *(('bottleneck', *bad) for bad in BAD_ARGUMENTS + BAD_SURROUNDINGS),
])
def test_bad_arguments(place, change, message):
    operands, _ = random_operands((2, 8, 4, 3), place)
    with pytest.raises(ValueError, match=message):
        attend(operands._replace(**change))


def flat(operands):
    """The operands as ``torch.ops.sa_mmdet.shuffle_attention`` takes them."""
    z, identity, batch_norm, parameters, groups = operands
    return z, identity, *(batch_norm or [None] * 4), *parameters, groups


@CPU_AND_REFERENCE
@IN_EVERY_PLACE
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_operator_is_what_torch_library_demands(implementation, place, layout):
    """Schema, fake implementation and autograd, as torch checks them."""
    require(implementation)
    operands, _ = random_operands((2, 8, 4, 3), place, layout=layout)
    for tensor in operands.differentiable().values():
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.sa_mmdet.shuffle_attention.default, (
        *flat(operands), 1e-5, 1e-5, implementation))


@CPU_AND_REFERENCE
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


def by_operator(operands, implementation):
    return torch.ops.sa_mmdet.shuffle_attention.default(
        *flat(operands), 1e-5, 1e-5, implementation)[0]


@pytest.mark.parametrize(('function', 'implementation'), [
    (attend, 'cpu'), (by_operator, 'cpu'), (by_operator, 'reference')
])
@pytest.mark.parametrize(('layout', 'place'), [
    ('contiguous', 'alone'), ('channels_last', 'alone'),
    ('contiguous', 'bottleneck'), ('channels_last', 'bottleneck'),
    ('contiguous', 'bottleneck without batch norm'),
])
def test_double_backward(function, implementation, layout, place):
    require(implementation)
    operands, _ = random_operands((1, 4, 3, 2), place, 1, torch.float64, layout)
    tensors = [tensor.requires_grad_() for tensor in operands.differentiable().values()]

    def compute(*tensors):
        return function(operands.made_of(tensors), implementation)

    assert torch.autograd.gradcheck(compute, tensors)
    assert torch.autograd.gradgradcheck(compute, tensors)


@CPU_AND_REFERENCE
def test_compiled_gradients(layer, inputs, implementation, force_ops):
    """The operator, also where it computes the reference, has the gradients of the reference."""
    require(implementation)
    force_ops(implementation)
    tensors = [*(tensor.requires_grad_() for tensor in inputs),
               *(tensor for tensor in layer.parameters() if tensor.requires_grad)]
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    actual = torch.autograd.grad(compiled(*inputs).square().sum(), tensors)
    force_ops('reference')
    expected = torch.autograd.grad(layer(*inputs).square().sum(), tensors)
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


def test_exported_with_dynamic_shape_is_one_node(layer, inputs):
    sizes = {dimension: torch.export.Dim(name, min=2, max=512)
             for dimension, name in ((0, 'n'), (2, 'h'), (3, 'w'))}
    program = torch.export.export(layer, inputs, dynamic_shapes=(sizes, ) * len(inputs))
    nodes = operators(program.graph_module)
    assert nodes[OPERATOR] == 1
    assert not [node for node in nodes if node.startswith('aten')]
    others = torch.randn(len(inputs), 3, 16, 9, 11)
    torch.testing.assert_close(program.module()(*others), layer(*others))


def test_traced_module_needs_no_operator(layer, inputs):
    traced = torch.jit.trace(layer, inputs)
    assert 'sa_mmdet::' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(*inputs), layer(*inputs))


def test_traced_on_meta_tensors(layer, inputs):
    layer, inputs = layer.to('meta'), tuple(tensor.to('meta') for tensor in inputs)
    traced = torch.jit.trace(layer, inputs, check_trace=False)
    assert layer(*inputs).shape == traced(*inputs).shape == inputs[0].shape


def test_forward_mode(layer, inputs):
    tangents = tuple(map(torch.ones_like, inputs))
    _, actual = torch.func.jvp(layer, inputs, tangents)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        y = layer(*map(torch.autograd.forward_ad.make_dual, inputs, tangents))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(y).tangent, actual)


def test_batched_gradients(layer, inputs):
    x = inputs[0].requires_grad_()
    y = layer(*inputs)
    several = torch.autograd.grad(y, x, torch.stack([y, -y]), is_grads_batched=True,
                                  retain_graph=True)[0]
    torch.testing.assert_close(several[0], torch.autograd.grad(y, x, y)[0])
    torch.testing.assert_close(several[0], -several[1])


def test_functorch(layer, inputs):
    per_sample = torch.func.vmap(torch.func.grad(
        lambda *sample: layer(*(tensor[None] for tensor in sample)).sum()))(*inputs)
    x = inputs[0].requires_grad_()
    torch.testing.assert_close(per_sample, torch.autograd.grad(layer(*inputs).sum(), x)[0])


@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx(layer, inputs, dynamo):
    actual = computed_by_onnxruntime(layer.eval(), inputs, dynamo)
    torch.testing.assert_close(actual, layer(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('capability', ['avx2', 'default'])
def test_an_older_cpu_loads_an_older_library(capability, monkeypatch):
    with forced(f'cpu-{capability}'):
        monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', capability.upper)
        assert cpp.capability.__wrapped__() == (capability, None)


def test_an_unknown_cpu_loads_the_plain_library(monkeypatch):
    with forced('cpu-default'):
        monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'SVE256')
        assert cpp.capability.__wrapped__() == ('default', None)
