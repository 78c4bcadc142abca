"""What follows conv3, fused, computes its formula, and what PyTorch's compilers make of it."""

import pytest
import torch
from fused import (
    CASES,
    LAYOUTS,
    MOVE_TO,
    SHAPES,
    bottleneck_gradients,
    check_bottleneck,
    computed_by_onnxruntime,
    forced,
    fused_bn_sa_add_relu,
    parameters_for,
    random_batch_norm,
    random_identity,
    random_input,
    random_parameters,
    require,
    where_triton_runs,
)

from sa_mmdet.ops import bottleneck_tail, triton_launch
from sa_mmdet.ops.reference import fused_bn_sa_add_relu_reference

FUSED = pytest.mark.parametrize('implementation', ['cpu', 'triton'])
IN_BOTH_LAYOUTS = pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
WITH_AND_WITHOUT = pytest.mark.parametrize('with_batch_norm', [True, False])


def random_bottleneck(shape, groups, dtype=torch.float32, layout='contiguous', shift=0.,
                with_batch_norm=True):
    """z, identity, batch norm, parameters, groups and dout."""
    z, dout = (random_input(shape, dtype, layout, shift=by, seed=seed)
               for seed, by in ((1, shift), (2, 0.)))
    parameters, batch_norm = parameters_for(shape, groups, dtype), None
    if with_batch_norm:
        batch_norm = random_batch_norm(shape[1], parameters[0].dtype, mean=shift)
    identity = LAYOUTS[layout](random_identity(z, batch_norm, parameters, groups))
    return z, identity, batch_norm, parameters, groups, dout


# Of the large planes Triton's interpreter takes one dtype here, the others below.
@pytest.mark.parametrize(('implementation', 'dtype', 'shape', 'groups'), [
    (implementation, dtype, shape, groups) for implementation, dtype, shape, groups in CASES
    if implementation != 'triton' or dtype == torch.float32 or shape != SHAPES[3][0]
], ids=str)
@IN_BOTH_LAYOUTS
def test_equals_formula(implementation, dtype, layout, shape, groups):
    for shift in (0, 100):
        bottleneck = random_bottleneck(shape, groups, dtype, layout, shift)
        for tensor in check_bottleneck(implementation, *bottleneck)[:3]:
            if layout == 'channels_last':
                assert tensor.is_contiguous(memory_format=torch.channels_last)
            else:
                assert tensor.stride() == bottleneck[0].stride()


@FUSED
@IN_BOTH_LAYOUTS
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_without_batch_norm(implementation, layout, dtype):
    check_bottleneck(implementation, *random_bottleneck((2, 8, 7, 5), 2, dtype, layout, shift=3,
                                            with_batch_norm=False))


@WITH_AND_WITHOUT
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_planes_larger_than_a_triton_program(dtype, with_batch_norm, monkeypatch):
    monkeypatch.setattr(triton_launch, 'contiguous_plan', lambda *_: (1, 256, 1))
    for size in ((33, 41), (24, 32)):  # with a rest and without one
        check_bottleneck('triton', *random_bottleneck((1, 6, *size), 1, dtype, shift=3,
                                                      with_batch_norm=with_batch_norm))


@FUSED
@pytest.mark.parametrize('z_layout', LAYOUTS)
@pytest.mark.parametrize('other_layout', LAYOUTS)
def test_any_strides(implementation, z_layout, other_layout):
    z, identity, batch_norm, parameters, groups, dout = random_bottleneck((2, 8, 6, 5), 2)
    identity, dout = map(LAYOUTS[other_layout], (identity, dout))
    check_bottleneck(
        implementation, LAYOUTS[z_layout](z), identity, batch_norm, parameters, groups, dout)


@FUSED
def test_expanded_tensors(implementation):
    shape = 3, 8, 4, 5
    z = random_input((1, 8, 1, 5), torch.float32).expand(shape)
    identity = torch.tensor([30., -30]).repeat(4).view(1, 8, 1, 1).expand(shape)
    check_bottleneck(implementation, z, identity, random_batch_norm(8), random_parameters(2), 2,
               torch.ones(1).expand(shape))


@FUSED
@IN_BOTH_LAYOUTS
def test_running_mean_far_from_the_mean(implementation, layout):
    z, _, _, parameters, groups, dout = random_bottleneck((2, 8, 7, 5), 2, layout=layout, shift=100)
    batch_norm = random_batch_norm(8, mean=-100)
    identity = random_identity(z, batch_norm, parameters, groups)
    check_bottleneck(implementation, z, identity, batch_norm, parameters, groups, dout)


@FUSED
@IN_BOTH_LAYOUTS
@pytest.mark.parametrize('zeros', [slice(0, 8, 3), slice(None)], ids=['some', 'all'])
def test_batch_norm_whose_weight_is_zero(implementation, layout, zeros):
    """Its gradient is that of the formula, from which a residual branch starts to learn."""
    z, _, batch_norm, parameters, groups, dout = random_bottleneck((2, 8, 7, 5), 2, layout=layout)
    with torch.no_grad():
        batch_norm[0][zeros] = 0
    identity = random_identity(z, batch_norm, parameters, groups)
    _, dz, _, dweight, *_ = check_bottleneck(
        implementation, z, identity, batch_norm, parameters, groups, dout)
    assert (dz[:, zeros] == 0).all()
    assert (dweight != 0).all()


@pytest.mark.parametrize(('implementation', 'z_dtype', 'dtype'), [
    *((name, z_dtype, dtype) for name in ('cpu', 'triton') for z_dtype, dtype in (
        (torch.float32, torch.bfloat16), (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16))),
    ('cpu', torch.float64, torch.float32),
    ('reference', torch.float32, torch.bfloat16),
    ('reference', torch.float64, torch.float32),
], ids=str)
def test_batch_norm_of_another_dtype(implementation, z_dtype, dtype):
    z, _, _, parameters, groups, dout = random_bottleneck((2, 8, 7, 5), 2, z_dtype)
    batch_norm = random_batch_norm(8, dtype)
    identity = random_identity(z, batch_norm, parameters, groups)
    check_bottleneck(implementation, z, identity, batch_norm, parameters, groups, dout)


@FUSED
@IN_BOTH_LAYOUTS
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_constant_planes(implementation, layout, dtype):
    z = LAYOUTS[layout](random_input((2, 8, 1, 1), dtype).expand(2, 8, 9, 7).contiguous())
    batch_norm, parameters = random_batch_norm(8), random_parameters(2)
    identity = random_identity(z, batch_norm, parameters, 2)
    check_bottleneck(implementation, z, identity, batch_norm, parameters, 2,
               random_input(z.shape, dtype, seed=2))


@FUSED
def test_saturated_gates(implementation):
    z, _, batch_norm, parameters, groups, dout = random_bottleneck((2, 8, 5, 5), 2)
    parameters = [(parameter.detach() * 200).requires_grad_() for parameter in parameters]
    identity = random_identity(z, batch_norm, parameters, groups)
    for tensor in check_bottleneck(
            implementation, z, identity, batch_norm, parameters, groups, dout):
        assert tensor.isfinite().all()


@FUSED
@WITH_AND_WITHOUT
def test_nothing(implementation, with_batch_norm):
    shape = 0, 8, 4, 4
    z, identity = (torch.zeros(shape, requires_grad=True) for _ in range(2))
    batch_norm, parameters = random_batch_norm(8) if with_batch_norm else None, random_parameters(2)
    with forced(implementation) as name:
        out = fused_bn_sa_add_relu(z, identity, batch_norm, *parameters, 2, implementation=name)
    out.sum().backward()
    assert out.shape == z.grad.shape == identity.grad.shape == shape
    assert all((tensor.grad == 0).all() for tensor in (*(batch_norm or ())[:2], *parameters))


@FUSED
def test_nan_stays_in_its_plane_and_lets_gradients_through(implementation):
    """As in the formula; ``check_bottleneck`` compares where the gradients are NaN."""
    z, identity, *bottleneck = random_bottleneck((2, 8, 3, 3), 2)
    for c in (0, 2):  # a plane of the channel branch and one of the spatial branch
        z[0, c, 1, 1] = torch.nan
    identity[1, :2, 2, 2] = torch.nan
    out, _, didentity, *_ = check_bottleneck(implementation, z, identity, *bottleneck)
    nan = out.isnan()
    assert nan.sum() == 2 * 9 + 2
    assert torch.equal(didentity[nan], bottleneck[-1][nan])


@FUSED
@pytest.mark.parametrize('frozen', [
    'z', 'identity', 'z and identity', 'batch norm', 'attention', 'all but identity'
])
def test_frozen(implementation, frozen):
    z, identity, batch_norm, parameters, groups, dout = random_bottleneck((2, 8, 5, 4), 2)
    tensors = [z.requires_grad_(), identity.requires_grad_(), *batch_norm[:2], *parameters]
    still = {
        'z': tensors[:1], 'identity': tensors[1:2], 'z and identity': tensors[:2],
        'batch norm': tensors[2:4], 'attention': tensors[4:],
        'all but identity': [tensors[0], *tensors[2:]]
    }[frozen]

    with forced(implementation) as name:
        def out():
            return fused_bn_sa_add_relu(
                z, identity, batch_norm, *parameters, groups, implementation=name)

        expected = torch.autograd.grad(out(), tensors, dout)
        for tensor in still:
            tensor.requires_grad_(False)
        out().backward(dout)
    for tensor, gradient in zip(tensors, expected, strict=True):
        if any(tensor is other for other in still):
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, gradient, rtol=0, atol=0)


def test_frozen_batch_norm_of_a_large_plane(monkeypatch):
    """Without the inputs' gradients nothing is written for them, the others are the same."""
    require('triton')
    monkeypatch.setattr(triton_launch, 'contiguous_plan', lambda *_: (1, 64, 1))
    z, identity, batch_norm, parameters, groups, dout = random_bottleneck((1, 4, 9, 11), 1)
    z, identity, dout, *tensors = (where_triton_runs(tensor.detach()) for tensor in (
        z, identity, dout, *batch_norm, *parameters))
    settings = tensors[:4], tensors[4:], groups, 1e-5, 1e-5
    out, stats = triton_launch.forward(z, identity, *settings)
    dz, didentity, *gradients = triton_launch.backward(dout, z, out, stats, *settings, False)
    assert dz.numel() == didentity.numel() == 0
    _, _, *expected = triton_launch.backward(dout, z, out, stats, *settings, True)
    assert all(map(torch.equal, gradients, expected))


@IN_BOTH_LAYOUTS
@pytest.mark.parametrize('shape', [(1, 16, 150, 149), (40, 1024, 3, 3)], ids=str)
def test_result_does_not_depend_on_threads(layout, shape):
    require('cpu')
    z, identity, batch_norm, parameters, groups, dout = random_bottleneck(shape, 4, layout=layout)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(bottleneck_gradients(
                lambda *args: fused_bn_sa_add_relu(*args, groups), z, identity, batch_norm,
                parameters, dout))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@FUSED
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'every second channel'])
def test_backward_keeps_the_input_output_and_statistics_only(implementation, layout):
    z, identity, batch_norm, parameters, groups, _ = random_bottleneck(
        (1, 8, 16, 16), 2, layout=layout)
    saved = []
    with forced(implementation) as name, torch.autograd.graph.saved_tensors_hooks(
            saved.append, lambda tensor: tensor):
        out = fused_bn_sa_add_relu(z.requires_grad_(), identity.requires_grad_(), batch_norm,
                                   *parameters, groups, implementation=name)
    large = [tensor for tensor in saved if tensor.numel() > 4 * z.shape[1]]
    assert len(large) == 2
    for tensor, expected in zip(large, (z, out), strict=True):
        if MOVE_TO and implementation == 'triton':
            assert torch.equal(tensor.cpu(), expected)
        else:
            assert tensor.data_ptr() == expected.data_ptr()


def operator(implementation, with_batch_norm):
    """``torch.ops.sa_mmdet.shuffle_attention`` of the tensors that can be differentiated."""
    def bottleneck(z, identity, *tensors):
        batch_norm, parameters = [None] * 4, tensors
        if with_batch_norm:
            batch_norm = [*tensors[:2], *random_batch_norm(z.shape[1], z.dtype)[2:]]
            parameters = tensors[2:]
        return torch.ops.sa_mmdet.shuffle_attention.default(
            z, identity, *batch_norm, *parameters, 1, 1e-5, 1e-5, implementation)[0]
    return bottleneck


@pytest.mark.parametrize('implementation', ['reference', 'cpu'])
@pytest.mark.parametrize(('layout', 'with_batch_norm'), [
    ('contiguous', True), ('channels_last', True), ('contiguous', False)
])
def test_double_backward(implementation, layout, with_batch_norm):
    require(implementation)
    z, identity, batch_norm, parameters, *_ = random_bottleneck(
        (1, 4, 1, 3), 1, torch.float64, layout, with_batch_norm=with_batch_norm)
    tensors = [z.requires_grad_(), identity.requires_grad_(), *(batch_norm or ())[:2], *parameters]
    function = operator(implementation, with_batch_norm)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize('implementation', ['reference', 'cpu'])
@IN_BOTH_LAYOUTS
@WITH_AND_WITHOUT
def test_operator_is_what_torch_library_demands(implementation, layout, with_batch_norm):
    """Schema, fake implementation and autograd, as torch checks them."""
    require(implementation)
    z, identity, batch_norm, parameters, groups, _ = random_bottleneck(
        (2, 8, 4, 3), 2, layout=layout, with_batch_norm=with_batch_norm)
    torch.library.opcheck(torch.ops.sa_mmdet.shuffle_attention.default, (
        z.requires_grad_(), identity.requires_grad_(), *(batch_norm or [None] * 4), *parameters,
        groups, 1e-5, 1e-5, implementation))


@pytest.mark.parametrize(('change', 'message'), [
    (dict(z=torch.zeros(8, 4, 3)), r'x must be \(N, C, H, W\)'),
    (dict(groups=3), '8 channels, which is not divisible by 2'),
    (dict(groups=4), r'must have C / \(2 \* groups\) = 1 values'),
    (dict(identity=torch.zeros(2, 8, 4, 1)), r'identity must have the shape of z, .*4, 3\D.*4, 1'),
    (dict(identity=torch.zeros(2, 8, 4, 3).double()), r'the dtype of z, torch\.float32, got .*64'),
    (dict(identity=torch.zeros(2, 8, 4, 3, device='meta')), 'the device of z, cpu, got meta'),
    (dict(batch_norm=random_batch_norm(4)), r'weight must have C = 8 values, got shape \(4,\)'),
], ids=['dimensions', 'channels', 'parameters', 'shape', 'dtype', 'device', 'batch norm'])
def test_bad_arguments(change, message):
    arguments = dict(z=torch.zeros(2, 8, 4, 3), identity=torch.zeros(2, 8, 4, 3),
                     batch_norm=random_batch_norm(8), groups=2)
    z, identity, batch_norm, groups = (arguments | change).values()
    with pytest.raises(ValueError, match=message):
        fused_bn_sa_add_relu(z, identity, batch_norm, *random_parameters(2), groups)


def test_former_name():
    arguments = *random_bottleneck((2, 8, 4, 3), 2)[:3], *random_parameters(2), 2
    with pytest.warns(DeprecationWarning, match='now called fused_bn_sa_add_relu'):
        actual = bottleneck_tail(*arguments)
    assert torch.equal(actual, fused_bn_sa_add_relu(*arguments))


class AfterConv3(torch.nn.Module):
    """The operator with its parameters, of two inputs."""

    def __init__(self, function=fused_bn_sa_add_relu, with_batch_norm=True):
        super().__init__()
        self.function = function
        tensors = random_parameters(4)
        if with_batch_norm:
            tensors = [*random_batch_norm(16), *tensors]
        self.with_batch_norm = with_batch_norm
        self.tensors = torch.nn.ParameterList(
            torch.nn.Parameter(tensor.detach(), tensor.requires_grad) for tensor in tensors)

    def forward(self, z, identity):
        tensors = tuple(self.tensors)
        batch_norm, parameters = None, tensors
        if self.with_batch_norm:
            batch_norm, parameters = tensors[:4], tensors[4:]
        return self.function(z, identity, batch_norm, *parameters, groups=2)


@pytest.fixture
def inputs():
    return [random_input((2, 16, 6, 5), torch.float32, seed=seed) for seed in (1, 2)]


@pytest.fixture
def formula(inputs):
    return AfterConv3(fused_bn_sa_add_relu_reference)(*inputs)


@pytest.mark.parametrize('implementation', ['reference', 'cpu'])
@WITH_AND_WITHOUT
def test_compiled_gradients(inputs, implementation, with_batch_norm, force_ops):
    require(implementation)
    force_ops(implementation)
    layer = AfterConv3(with_batch_norm=with_batch_norm)
    tensors = [*(tensor.requires_grad_() for tensor in inputs),
               *(tensor for tensor in layer.parameters() if tensor.requires_grad)]
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    actual = torch.autograd.grad(compiled(*inputs).square().sum(), tensors)
    layer.function = fused_bn_sa_add_relu_reference
    expected = torch.autograd.grad(layer(*inputs).square().sum(), tensors)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@WITH_AND_WITHOUT
def test_exported_with_dynamic_shape_is_one_node(inputs, with_batch_norm):
    layer = AfterConv3(with_batch_norm=with_batch_norm)
    sizes = {dimension: torch.export.Dim(name, min=2, max=512)
             for dimension, name in ((0, 'n'), (2, 'h'), (3, 'w'))}
    program = torch.export.export(layer, tuple(inputs), dynamic_shapes=(sizes, sizes))
    nodes = [str(node.target) for node in program.graph.nodes if node.op == 'call_function']
    assert nodes[0] == 'sa_mmdet.shuffle_attention.default'
    assert not [node for node in nodes if node.startswith('aten')]
    others = torch.randn(2, 3, 16, 9, 11)
    torch.testing.assert_close(program.module()(*others), layer(*others))


def test_traced_module_needs_no_operator(inputs, formula):
    traced = torch.jit.trace(AfterConv3(), inputs)
    assert 'sa_mmdet::' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(*inputs), formula)


def test_meta_tensors(inputs):
    inputs, layer = [tensor.to('meta') for tensor in inputs], AfterConv3().to('meta')
    assert layer(*inputs).shape == inputs[0].shape
    assert torch.jit.trace(layer, inputs, check_trace=False)(*inputs).shape == inputs[0].shape


def test_functorch(inputs):
    layer = AfterConv3()
    per_sample = torch.func.vmap(torch.func.grad(
        lambda z, identity: layer(z[None], identity[None]).sum()))(*inputs)
    inputs[0].requires_grad_()
    expected, = torch.autograd.grad(layer(*inputs).sum(), inputs[:1])
    torch.testing.assert_close(per_sample, expected)


@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx(inputs, formula, dynamo):
    actual = computed_by_onnxruntime(AfterConv3().eval(), tuple(inputs), dynamo)
    torch.testing.assert_close(actual, formula, rtol=1e-4, atol=1e-4)
