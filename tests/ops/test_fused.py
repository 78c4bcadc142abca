"""The fused implementations compute the reference, in every dtype, shape, layout and place."""
import pytest
import torch
from fused import (
    BATCH_NORM,
    CASES,
    LAYOUTS,
    MOVE_TO,
    PARAMETERS,
    PLACES,
    SHAPES,
    attend,
    check,
    forced,
    gradients,
    operands_around,
    random_batch_norm,
    random_input,
    random_operands,
    random_parameters,
    require,
    where_triton_runs,
)

from sa_mmdet.apps.speed.measure import peak_memory
from sa_mmdet.ops import bottleneck_tail, dispatch, fused_bn_sa_add_relu, triton_launch
from sa_mmdet.ops.reference import channel_shuffle

FUSED = pytest.mark.parametrize('implementation', ['cpu', 'triton'])
IN_BOTH_LAYOUTS = pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
IN_EVERY_PLACE = pytest.mark.parametrize('place', PLACES)
ALONE_AND_IN_BOTTLENECK = pytest.mark.parametrize('place', PLACES[:2])
IN_TWO_DTYPES = pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
IN_TRITONS_DTYPES = pytest.mark.parametrize(
    'dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)


# In a bottleneck Triton's interpreter takes one dtype of the large planes, the others below.
@pytest.mark.parametrize(('place', 'implementation', 'dtype', 'shape', 'groups'), [
    (place, implementation, dtype, shape, groups)
    for place in PLACES[:2] for implementation, dtype, shape, groups in CASES
    if (place == 'alone' or implementation != 'triton' or dtype == torch.float32
        or shape != SHAPES[3][0])
], ids=str)
@IN_BOTH_LAYOUTS
def test_equals_reference(place, implementation, dtype, layout, shape, groups):
    for shift in (0, 100):
        operands, dout = random_operands(shape, place, groups, dtype, layout, shift)
        results = check(implementation, operands, dout)
        for name in {'out', 'z', 'identity'} & results.keys():
            if layout == 'channels_last':
                assert results[name].is_contiguous(memory_format=torch.channels_last)
            else:
                assert results[name].stride() == operands.z.stride()


@FUSED
@IN_BOTH_LAYOUTS
@IN_TWO_DTYPES
def test_without_batch_norm(implementation, layout, dtype):
    check(implementation, *random_operands((2, 8, 7, 5), PLACES[2], 2, dtype, layout, shift=3))


@IN_EVERY_PLACE
@IN_TRITONS_DTYPES
@pytest.mark.parametrize('size', [(33, 41), (24, 32)], ids=['a rest', 'whole blocks'])
def test_planes_larger_than_a_triton_program(place, dtype, size, monkeypatch):
    monkeypatch.setattr(triton_launch, 'contiguous_plan', lambda *_: (1, 256, 1))
    images = 2 if place == 'alone' else 1
    check('triton', *random_operands((images, 6, *size), place, 1, dtype, shift=3))


@IN_TRITONS_DTYPES
def test_more_chunks_than_are_merged_at_a_time(dtype, monkeypatch):
    monkeypatch.setattr(triton_launch, 'MERGED_CHUNKS', 4)  # of 11
    check('triton', *random_operands((2, 6, 33, 41), 'alone', 1, dtype, 'channels_last', shift=3))


@FUSED
@ALONE_AND_IN_BOTTLENECK
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('other_layout', LAYOUTS)
def test_any_strides(implementation, place, layout, other_layout):
    shape = 2, 8, 6, 5
    operands = operands_around(
        random_input(shape, torch.float32, layout), place, layout=other_layout)
    check(implementation, operands, random_input(shape, torch.float32, other_layout, seed=2))


@FUSED
@ALONE_AND_IN_BOTTLENECK
def test_expanded_tensors(implementation, place):
    shape = 3, 8, 4, 5
    operands = operands_around(random_input((1, 8, 1, 5), torch.float32).expand(shape), place)
    if place == 'bottleneck':
        identity = torch.tensor([30., -30]).repeat(4).view(1, 8, 1, 1).expand(shape)
        operands = operands._replace(identity=identity)
    check(implementation, operands, torch.ones(1).expand(shape))


@IN_BOTH_LAYOUTS
def test_large_planes(layout):
    check('cpu', *random_operands((1, 4, 400, 399), 'alone', 1, layout=layout, shift=3))


@FUSED
@IN_BOTH_LAYOUTS
def test_mean_far_beyond_the_deviation(implementation, layout):
    """The reference in float32 has no correct digit here."""
    check(implementation, *random_operands((2, 8, 30, 31), 'alone', layout=layout, shift=1e4))


@FUSED
@IN_BOTH_LAYOUTS
def test_running_mean_far_from_the_mean(implementation, layout):
    check(implementation, *random_operands((2, 8, 7, 5), 'bottleneck', layout=layout, shift=100,
                                           mean=-100))


@FUSED
@IN_BOTH_LAYOUTS
@pytest.mark.parametrize('zeros', [slice(0, 8, 3), slice(None)], ids=['some', 'all'])
def test_batch_norm_whose_weight_is_zero(implementation, layout, zeros):
    """Its gradient is that of the reference, from which a residual branch starts to learn."""
    batch_norm = random_batch_norm(8)
    with torch.no_grad():
        batch_norm[0][zeros] = 0
    results = check(implementation, *random_operands((2, 8, 7, 5), 'bottleneck', layout=layout,
                                                     batch_norm=batch_norm))
    assert (results['z'][:, zeros] == 0).all()
    assert (results['bn_weight'] != 0).all()


@pytest.mark.parametrize(('implementation', 'z_dtype', 'dtype'), [
    *((name, z_dtype, dtype) for name in ('cpu', 'triton') for z_dtype, dtype in (
        (torch.float32, torch.bfloat16), (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16))),
    ('cpu', torch.float64, torch.float32),
    ('reference', torch.float32, torch.bfloat16),
    ('reference', torch.float64, torch.float32),
], ids=str)
def test_batch_norm_of_another_dtype(implementation, z_dtype, dtype):
    check(implementation, *random_operands((2, 8, 7, 5), 'bottleneck', dtype=z_dtype,
                                           batch_norm=random_batch_norm(8, dtype)))


@FUSED
@IN_BOTH_LAYOUTS
@IN_TWO_DTYPES
@ALONE_AND_IN_BOTTLENECK
def test_constant_planes(implementation, layout, dtype, place):
    z = random_input((2, 8, 1, 1), dtype).expand(2, 8, 9, 7)
    operands = operands_around(LAYOUTS[layout](z.contiguous()), place)
    check(implementation, operands, random_input(z.shape, dtype, seed=2))


@FUSED
@IN_BOTH_LAYOUTS
def test_large_constant_planes_have_no_variance(implementation, layout):
    """Whatever rounding makes of their mean. The reference has no digit left."""
    planes = (random_input((1, 64, 1, 1), torch.float32).abs() + 1) * 1e30
    x = LAYOUTS[layout](planes.expand(1, 64, 3, 3).contiguous())
    operands = operands_around(x, 'alone', groups=32)
    with forced(implementation) as name:
        y = attend(operands, name)
    gates = channel_shuffle(y, 32)[:, 1::2] / x[:, 1::2]
    _, _, sweight, sbias, _, gn_bias = operands.parameters
    torch.testing.assert_close(gates, torch.sigmoid(sweight * gn_bias + sbias).expand_as(gates))


@FUSED
@IN_BOTH_LAYOUTS
def test_values_near_the_limit_of_float16(implementation, layout):
    x = random_input((2, 8, 16, 15), torch.float16, layout).sign() * 65504
    check(implementation, operands_around(x, 'alone'), random_input(x.shape, x.dtype, seed=2))


@FUSED
@ALONE_AND_IN_BOTTLENECK
def test_saturated_gates(implementation, place):
    """Gates of exp(+-200) neither overflow nor lose the sign of what is left."""
    parameters = [parameter.detach() * 200 for parameter in random_parameters(2)]
    results = check(
        implementation, *random_operands((2, 8, 5, 5), place, parameters=parameters))
    assert all(tensor.isfinite().all() for tensor in results.values())


@FUSED
@IN_EVERY_PLACE
def test_nothing(implementation, place):
    operands, dout = random_operands((1, 8, 4, 4), place)
    operands = operands._replace(
        z=operands.z[:0], identity=None if place == 'alone' else operands.identity[:0])
    with forced(implementation) as name:
        results = gradients(lambda operands: attend(operands, name), operands, dout[:0])
    for key, tensor in results.items():
        if key in ('out', 'z', 'identity'):
            assert tensor.shape == (0, 8, 4, 4)
        else:
            assert (tensor == 0).all()


@FUSED
@ALONE_AND_IN_BOTTLENECK
def test_nan_stays_in_its_plane_and_lets_gradients_through(implementation, place):
    """As in the reference; ``check`` compares where the results are NaN."""
    operands, dout = random_operands((2, 8, 3, 3), place)
    for c in (0, 2):  # a plane of the channel branch and one of the spatial branch
        operands.z[0, c, 1, 1] = torch.nan
    if place == 'bottleneck':
        operands.identity[1, :2, 2, 2] = torch.nan
    results = check(implementation, operands, dout)
    nan = results['out'].isnan()
    assert nan.sum() == 2 * 9 + 2 * (place == 'bottleneck')
    if place == 'bottleneck':
        assert torch.equal(results['identity'][nan], dout[nan])


@FUSED
@pytest.mark.parametrize(('place', 'frozen'), [
    ('alone', ['z']),
    ('alone', PARAMETERS),
    ('alone', PARAMETERS[4:]),
    ('bottleneck', ['z']),
    ('bottleneck', ['identity']),
    ('bottleneck', ['z', 'identity']),
    ('bottleneck', BATCH_NORM),
    ('bottleneck', PARAMETERS),
    ('bottleneck', ['z', *BATCH_NORM, *PARAMETERS]),
], ids=lambda value: value if isinstance(value, str) else f'{value[0]} to {value[-1]}')
def test_frozen(implementation, place, frozen):
    operands, dout = random_operands((2, 8, 5, 4), place)
    tensors = operands.differentiable()
    with forced(implementation) as name:
        expected = gradients(lambda operands: attend(operands, name), operands, dout)
        for key, tensor in tensors.items():
            tensor.requires_grad_(key not in frozen)
        attend(operands, name).backward(dout)
    for key, tensor in tensors.items():
        if key in frozen:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, expected[key], rtol=0, atol=0)


def test_hooks_see_wanted_gradients_only():
    operands, dout = random_operands((2, 8, 5, 4), 'bottleneck')
    tensors = operands.differentiable()
    wanted = ['z', BATCH_NORM[1], PARAMETERS[2]]
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in wanted)
    z, identity, batch_norm, parameters, groups = operands
    out = fused_bn_sa_add_relu(z, identity, batch_norm, *parameters, groups=groups)
    seen = []
    out.grad_fn.register_hook(lambda gradients, _: seen.extend(gradients))
    out.backward(dout)
    assert [gradient.shape for gradient in seen if gradient is not None] == [
        tensors[name].shape for name in wanted]


@FUSED
@ALONE_AND_IN_BOTTLENECK
def test_inputs_whose_gradients_are_not_wanted(implementation, place, monkeypatch):
    """Nothing is written for them, the others are the same, also of large planes."""
    require(implementation)
    monkeypatch.setattr(triton_launch, 'contiguous_plan', lambda *_: (1, 64, 1))
    module = dispatch.module_of(implementation)
    operands, dout = random_operands((1, 4, 9, 11), place, 1)
    if implementation == 'triton':
        operands, dout = where_triton_runs((operands, dout))
    z, identity, *settings = *operands, 1e-5, 1e-5
    with torch.no_grad():
        out, stats = module.forward(z, identity, *settings)
        of_forward = dout, z, None if identity is None else out, stats, *settings
        dz, didentity, *of_parameters = module.backward(*of_forward, False)
        _, _, *expected = module.backward(*of_forward, True)
    assert dz.numel() == didentity.numel() == 0
    assert all(map(torch.equal, of_parameters, expected))


@ALONE_AND_IN_BOTTLENECK
def test_no_grad(place):
    require('cpu')
    operands, _ = random_operands((1, 8, 3, 3), place)
    operands.z.requires_grad_()
    with torch.no_grad():
        assert not attend(operands).requires_grad


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_the_dtype_of_the_input(dtype):
    with torch.autocast('cpu', dtype):
        check('cpu', *random_operands((2, 8, 6, 5), 'alone', dtype=dtype))


@ALONE_AND_IN_BOTTLENECK
@IN_BOTH_LAYOUTS
@pytest.mark.parametrize('shape', [(1, 16, 150, 149), (40, 1024, 3, 3)], ids=str)
def test_result_does_not_depend_on_threads(place, layout, shape):
    require('cpu')
    operands, dout = random_operands(shape, place, 4, layout=layout)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(gradients(attend, operands, dout).values())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@FUSED
@ALONE_AND_IN_BOTTLENECK
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'every second channel'])
def test_backward_keeps_the_input_output_and_statistics_only(implementation, place, layout):
    """The output in a bottleneck alone, for the derivative of the ReLU."""
    operands, _ = random_operands((1, 8, 16, 16), place, layout=layout)
    for tensor in operands.differentiable().values():
        tensor.requires_grad_()
    saved = []
    with forced(implementation) as name, torch.autograd.graph.saved_tensors_hooks(
            saved.append, lambda tensor: tensor):
        out = attend(operands, name)
    large = [tensor for tensor in saved if tensor.numel() > 4 * 8]
    kept = [operands.z] if place == 'alone' else [operands.z, out]
    for tensor, expected in zip(large, kept, strict=True):
        if MOVE_TO and implementation == 'triton':
            assert torch.equal(tensor.cpu(), expected)
        else:
            assert tensor.data_ptr() == expected.data_ptr()


@IN_BOTH_LAYOUTS
def test_peak_memory_is_that_of_clone_and_add(layout):
    require('cpu')
    operands, dy = random_operands((1, 256, 64, 64), 'alone', 64, layout=layout)
    x = operands.z

    def clone_and_add():
        return x.clone(), x + dy

    bytes_of_x = x.numel() * x.element_size()
    assert peak_memory(clone_and_add, x.device) == 2 * bytes_of_x
    attention = peak_memory(lambda: gradients(attend, operands, dy), x.device)
    assert 2 * bytes_of_x < attention <= 1.05 * 2 * bytes_of_x


def test_former_name():
    operands, _ = random_operands((2, 8, 4, 3), 'bottleneck')
    z, identity, batch_norm, parameters, groups = operands
    with pytest.warns(DeprecationWarning, match='now called fused_bn_sa_add_relu'):
        actual = bottleneck_tail(z, identity, batch_norm, *parameters, groups)
    assert torch.equal(actual, attend(operands))


def test_what_is_compiled_is_launched_again_where_it_fits(monkeypatch):
    """For anything else that Triton may compile anew for, Triton is asked."""
    compiled, asked = [], []

    class Compiled:

        def __getitem__(self, grid):
            return lambda *args: compiled.append(args)

    class Kernel:

        def __getitem__(self, grid):
            return lambda *args, **options: asked.append((args, options)) or Compiled()

    monkeypatch.setattr(triton_launch, '_takes_constants', lambda: True)
    monkeypatch.setattr(triton_launch, '_compiled', {})
    kernel, x = Kernel(), torch.zeros(64)

    def launch(tensors=(x, None), number=3, warps=4, constant=True):
        triton_launch._launch(kernel, (1, 1, 1), warps, tensors, (number, 0.5), CONSTANT=constant)

    launch()
    launch()
    launch((torch.ones(7), None))  # other tensors, of which none is specialised for its length
    assert [args[2:] for args in compiled] == [(3, 0.5, True)] * 2
    assert compiled[1][0][0] == 1
    (args, options), = asked
    assert args[2:] == (3, 0.5)
    assert options == dict(CONSTANT=True, num_warps=4, enable_fp_fusion=False)
    others = [dict(tensors=(x.half(), None)), dict(tensors=(x[1:], None)), dict(tensors=(x, x)),
              dict(tensors=(torch.zeros(64, device='meta'), None)), dict(number=16), dict(warps=8),
              dict(constant=False)]
    for other in others:
        launch(**other)
    assert len(compiled) == 2
    assert len(asked) == 1 + len(others)
    monkeypatch.setattr(triton_launch, 'MOST_COMPILED', len(triton_launch._compiled))
    launch(number=17)
    assert len(triton_launch._compiled) == 1
