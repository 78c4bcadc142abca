"""The fused implementations compute the formula, in every dtype, shape and layout."""
import pytest
import torch
from fused import (
    CASES,
    LAYOUTS,
    check,
    forced,
    parameters_for,
    random_input,
    random_parameters,
    require,
    shuffle_attention,
)

from sa_mmdet.apps.speed.measure import peak_memory
from sa_mmdet.ops import cpp, triton_launch
from sa_mmdet.ops.reference import channel_shuffle, shuffle_attention_reference


@pytest.mark.parametrize(('implementation', 'dtype', 'shape', 'groups'), CASES, ids=str)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_equals_formula(implementation, dtype, layout, shape, groups):
    for shift in (0, 100):
        x = random_input(shape, dtype, layout, shift=shift)
        dy = random_input(shape, dtype, layout, seed=2)
        y, dx, *_ = check(implementation, x, parameters_for(shape, groups, dtype), groups, dy)
        for tensor in (y, dx):
            assert tensor.stride() == x.contiguous().stride() or layout == 'channels_last'
            assert tensor.is_contiguous(memory_format=torch.channels_last) or layout == 'contiguous'


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('size', [(33, 41), (24, 32)], ids=['a rest', 'whole blocks'])
def test_planes_larger_than_a_triton_program(dtype, size, monkeypatch):
    monkeypatch.setattr(triton_launch, 'contiguous_plan', lambda *_: (1, 256, 1))
    shape = 2, 6, *size
    check('triton', random_input(shape, dtype, shift=3), random_parameters(3), 1,
          random_input(shape, dtype, seed=2))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_more_chunks_than_are_merged_at_a_time(dtype, monkeypatch):
    monkeypatch.setattr(triton_launch, 'MERGED_CHUNKS', 4)  # of 11
    shape = 2, 6, 33, 41
    check('triton', random_input(shape, dtype, 'channels_last', shift=3), random_parameters(3), 1,
          random_input(shape, dtype, 'channels_last', seed=2))


@pytest.mark.parametrize('implementation', ['cpu', 'triton'])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dy_layout', LAYOUTS)
def test_any_strides(implementation, layout, dy_layout):
    shape, groups = (2, 8, 6, 5), 2
    x, dy = (random_input(shape, torch.float32, name, seed=seed)
             for seed, name in enumerate((layout, dy_layout)))
    check(implementation, x, random_parameters(2), groups, dy)


@pytest.mark.parametrize('implementation', ['cpu', 'triton'])
def test_expanded_gradient_and_input(implementation):
    x = random_input((1, 8, 1, 5), torch.float32).expand(3, 8, 4, 5)
    check(implementation, x, random_parameters(2), 2, torch.ones(1).expand(3, 8, 4, 5))


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_large_planes(layout):
    shape = 1, 4, 400, 399
    check('cpu', random_input(shape, torch.float32, layout, shift=3), random_parameters(2), 1,
          random_input(shape, torch.float32, layout, seed=2))


@pytest.mark.parametrize('implementation', ['cpu', 'triton'])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_mean_far_beyond_the_deviation(implementation, layout):
    """The formula in float32 has no correct digit here."""
    shape = 2, 8, 30, 31
    x = random_input(shape, torch.float32, layout, shift=1e4)
    check(implementation, x, random_parameters(2), 2, random_input(shape, torch.float32, seed=2))


@pytest.mark.parametrize('implementation', ['cpu', 'triton'])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_constant_planes(implementation, layout, dtype):
    x = random_input((2, 8, 1, 1), dtype).expand(2, 8, 9, 7)
    x = LAYOUTS[layout](x.contiguous())
    check(implementation, x, random_parameters(2), 2, random_input(x.shape, dtype, seed=2))


@pytest.mark.parametrize('implementation', ['cpu', 'triton'])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_large_constant_planes_have_no_variance(implementation, layout):
    """Whatever rounding makes of their mean. The formula has no digit left."""
    planes = (random_input((1, 64, 1, 1), torch.float32).abs() + 1) * 1e30
    x = LAYOUTS[layout](planes.expand(1, 64, 3, 3).contiguous())
    parameters = random_parameters(1)
    with forced(implementation) as name:
        y = shuffle_attention(x, *parameters, 32, implementation=name)
    gates = channel_shuffle(y, 32)[:, 1::2] / x[:, 1::2]
    _, _, sweight, sbias, _, gn_bias = parameters
    torch.testing.assert_close(gates, torch.sigmoid(sweight * gn_bias + sbias).expand_as(gates))


@pytest.mark.parametrize('implementation', ['cpu', 'triton'])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_values_near_the_limit_of_float16(implementation, layout):
    shape = 2, 8, 16, 15
    x = random_input(shape, torch.float16, layout).sign() * 65504
    check(implementation, x, random_parameters(2), 2, random_input(shape, torch.float16, seed=2))


@pytest.mark.parametrize('implementation', ['cpu', 'triton'])
def test_saturated_gates(implementation):
    """Gates of exp(+-200) neither overflow nor lose the sign of what is left."""
    x = random_input((2, 8, 5, 5), torch.float32)
    parameters = [(parameter.detach() * 200).requires_grad_() for parameter in random_parameters(2)]
    for tensor in check(implementation, x, parameters, 2, torch.ones_like(x)):
        assert tensor.isfinite().all()


@pytest.mark.parametrize('implementation', ['cpu', 'triton'])
def test_nothing(implementation):
    shape = 0, 8, 4, 4
    x, parameters = torch.zeros(shape, requires_grad=True), random_parameters(2)
    with forced(implementation) as name:
        y = shuffle_attention(x, *parameters, 2, implementation=name)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert all((parameter.grad == 0).all() for parameter in parameters)


@pytest.mark.parametrize('implementation', ['cpu', 'triton'])
def test_nan_stays_in_its_plane(implementation):
    x = random_input((2, 8, 3, 3), torch.float32)
    for c in (0, 2):  # a plane of the channel branch and one of the spatial branch
        x[0, c, 1, 1] = torch.nan
    with forced(implementation) as name:
        y = shuffle_attention(x, *random_parameters(2), 2, implementation=name)
    expected = shuffle_attention_reference(x, *random_parameters(2), 2)
    assert torch.equal(y.isnan(), expected.isnan())


@pytest.mark.parametrize('implementation', ['cpu', 'triton'])
@pytest.mark.parametrize('frozen', ['input', 'parameters', 'group norm'])
def test_frozen(implementation, frozen):
    x, dy = (random_input((2, 8, 5, 4), torch.float32, seed=seed) for seed in (1, 2))
    tensors = [x.requires_grad_(), *random_parameters(2)]
    still = {'input': tensors[:1], 'parameters': tensors[1:], 'group norm': tensors[5:]}[frozen]
    with forced(implementation) as name:
        expected = torch.autograd.grad(
            shuffle_attention(*tensors, 2, implementation=name), tensors, dy)
        for tensor in still:
            tensor.requires_grad_(False)
        shuffle_attention(*tensors, 2, implementation=name).backward(dy)
    for tensor, gradient in zip(tensors, expected, strict=True):
        if any(tensor is other for other in still):
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, gradient, rtol=0, atol=0)


def test_frozen_input_is_not_differentiated():
    require('cpu')
    x, *parameters = (tensor.detach() for tensor in (torch.ones(1, 4, 3, 3), *random_parameters(1)))
    settings = None, parameters, 2, 1e-5, 0.
    _, stats = cpp.forward(x, None, *settings)
    dx, didentity, *_ = cpp.backward(x, x, None, stats, *settings, False)
    assert dx.numel() == didentity.numel() == 0


def test_no_grad():
    require('cpu')
    x = random_input((1, 8, 3, 3), torch.float32).requires_grad_()
    with torch.no_grad():
        assert not shuffle_attention(x, *random_parameters(2), 2).requires_grad


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_the_dtype_of_the_input(dtype):
    x, dy = (random_input((2, 8, 6, 5), dtype, seed=seed) for seed in (1, 2))
    with torch.autocast('cpu', dtype):
        check('cpu', x, random_parameters(2), 2, dy)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('shape', [(1, 16, 150, 149), (40, 1024, 3, 3)], ids=str)
def test_result_does_not_depend_on_threads(layout, shape):
    require('cpu')
    x, dy = (random_input(shape, torch.float32, layout, seed=seed) for seed in (1, 2))
    tensors = [x.requires_grad_(), *random_parameters(shape[1] // 8)]
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            y = shuffle_attention(*tensors, 4)
            results.append((y, *torch.autograd.grad(y, tensors, dy)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'every second channel'])
def test_backward_keeps_the_input_and_statistics_only(layout):
    require('cpu')
    x = random_input((2, 8, 32, 32), torch.float32, layout).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        shuffle_attention(x, *random_parameters(2), 2)
    large = [tensor for tensor in saved if tensor.numel() > 2 * x.shape[0] * x.shape[1]]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_peak_memory_is_that_of_clone_and_add(layout):
    require('cpu')
    x, dy = (random_input((1, 256, 64, 64), torch.float32, layout, seed=seed) for seed in (1, 2))
    tensors = [x.requires_grad_(), *random_parameters(2)]

    def clone_and_add():
        y = x.detach().clone()
        return y, x.detach() + dy

    def attention():
        y = shuffle_attention(*tensors, 64)
        return y, torch.autograd.grad(y, tensors, dy)

    bytes_of_x = x.numel() * x.element_size()
    assert peak_memory(clone_and_add, x.device) == 2 * bytes_of_x
    assert 2 * bytes_of_x < peak_memory(attention, x.device) <= 1.05 * 2 * bytes_of_x


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_double_backward(layout):
    require('cpu')
    x = random_input((1, 4, 3, 2), torch.float64, layout).requires_grad_()
    parameters = random_parameters(2, torch.float64)
    assert torch.autograd.gradcheck(lambda *args: shuffle_attention(*args, 1), (x, *parameters))
    assert torch.autograd.gradgradcheck(lambda *args: shuffle_attention(*args, 1), (x, *parameters))


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
