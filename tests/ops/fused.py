"""Running the fused implementations beside the formula in float64.

Triton's kernels run on the GPU where there is one (test_on_gpu.py), else in Triton's interpreter.
The tests make CPU tensors: what goes to Triton is moved to the GPU, strides kept, and comes back.
"""
import functools
import io
import os
import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from sa_mmdet import ops
from sa_mmdet.ops import cpp, implementations, triton_launch
from sa_mmdet.ops.reference import (
    channel_shuffle,
    fused_bn_sa_add_relu_reference,
    shuffle_attention_reference,
)

if triton_launch.INTERPRETED:  # it asks NumPy for the number in an array of one, which 2.5 refuses
    from triton.runtime import interpreter
    _patch_tensor = interpreter._patch_lang_tensor

    def _patch(tensor, scope):
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, '__index__', lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = _patch

# 'cuda', or 'cpu' to try the moving without a GPU
MOVE_TO = os.environ.get('SA_MMDET_TEST_DEVICE')
# times the tolerances, where exp and division are good to two units each
ULPS_OF_TRITON = 4 if MOVE_TO == 'cuda' else 1

# 'cpu-avx2' and so on are the C++ implementation by one of its libraries.
LIBRARIES = tuple(f'cpu-{name}' for name in cpp.CAPABILITIES)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = [  # and groups
    ((2, 8, 7, 5), 2),
    ((3, 24, 1, 1), 3),
    ((1, 256, 5, 3), 64),
    ((2, 6, 33, 41), 1),
    ((1, 4, 1, 9001), 1),
]
CASES = [(library, dtype, *shape)
         for library in LIBRARIES for dtype in DTYPES for shape in SHAPES]
# Triton's interpreter takes its time over large planes.
OF_TRITON = SHAPES[:4]
if MOVE_TO == 'cuda':  # ResNet-50's stages
    OF_TRITON = [*SHAPES, ((1, 256, 200, 336), 64), ((1, 512, 100, 168), 64),
                 ((2, 1024, 50, 84), 64), ((2, 2048, 25, 42), 64)]
CASES += [('triton', dtype, *shape)
          for dtype in DTYPES if dtype != torch.float64 for shape in OF_TRITON]


def refusal(implementation):
    """Why the implementation cannot be used, None if it can."""
    if reason := implementations()[implementation.split('-')[0]]:
        return reason
    if implementation in LIBRARIES:
        loaded = cpp.capability()[0]
        if LIBRARIES.index(implementation) < LIBRARIES.index(f'cpu-{loaded}'):
            return 'this CPU has no ' + implementation
    return None


def require(implementation):
    """Skip where the implementation cannot be used, saying why."""
    if reason := refusal(implementation):
        assert 'tried out' not in reason, reason
        pytest.skip(reason)


@contextmanager
def forced(implementation):
    """The name to force, while exactly the given library computes it and fresh memory holds NaN."""
    require(implementation)
    name, _, capability = implementation.partition('-')
    with pytest.MonkeyPatch.context() as patch, poisoned_memory():
        if capability:
            library = cpp.library(capability)
            torch.ops.load_library(library)
            patch.setattr(cpp, 'operators', lambda: cpp.operators_of(capability))
        yield name


@contextmanager
def poisoned_memory():
    """What is allocated and not written is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def moved(tensor, device):
    """A copy on a device with the same strides, also where these overlap or leave gaps."""
    if not tensor.numel():
        return tensor.detach().to(device)
    size = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.detach().as_strided((size,), (1,)).to(device, copy=True)
    return memory.as_strided(tensor.shape, tensor.stride())


class Move(torch.autograd.Function):
    """``moved``, and its gradient moved back."""

    @staticmethod
    def forward(ctx, tensor, device):
        ctx.device = tensor.device
        return moved(tensor, device)

    @staticmethod
    def backward(ctx, gradient):
        return moved(gradient, ctx.device), None


def where_triton_runs(value):
    """Tensors there, also those in tuples; anything else as it is."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(where_triton_runs, value))
    if MOVE_TO is None or not isinstance(value, torch.Tensor):
        return value
    return Move.apply(value, MOVE_TO) if value.requires_grad else moved(value, MOVE_TO)


def where_it_is_fast(function):
    """Computes where Triton does: in float64 the CPU takes minutes for large planes."""
    if MOVE_TO is None:
        return function

    def call(*args, **options):
        return Move.apply(function(*where_triton_runs(args), **{
            key: where_triton_runs(value) for key, value in options.items()}), 'cpu')
    return call


def _anywhere(function):
    @functools.wraps(function)
    def call(*args, implementation=None, **options):
        by_triton = 'triton' in (implementation, os.environ.get('SA_MMDET_OPS'))
        compute = where_it_is_fast(function) if by_triton else function
        return compute(*args, implementation=implementation, **options)
    return call


shuffle_attention = _anywhere(ops.shuffle_attention)
fused_bn_sa_add_relu = _anywhere(ops.fused_bn_sa_add_relu)


def repeated(implementation, run):
    """The results of ``run(name)``, which a second run gives bit for bit."""
    with forced(implementation) as name:
        first, second = run(name), run(name)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    return first


def random_parameters(p, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, p, 1, 1)] * 4 + [(p, )] * 2
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def parameters_for(shape, groups, dtype):
    """Parameters in which those of a network in this dtype are kept."""
    return random_parameters(
        shape[1] // (2 * groups), torch.float64 if dtype == torch.float64 else torch.float32)


def random_input(shape, dtype, layout='contiguous', scale=1., shift=0., seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift).to(dtype)
    return LAYOUTS[layout](x)


LAYOUTS = {
    'contiguous': lambda x: x,
    'channels_last': lambda x: x.to(memory_format=torch.channels_last),
    'every second channel': lambda x: x.repeat_interleave(2, 1)[:, ::2],
    'every second column': lambda x: x.repeat_interleave(2, 3)[..., ::2],
    'transposed': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


def gradients(function, x, parameters, dy):
    x = x.detach().requires_grad_()
    y = function(x, *parameters)
    return y, *torch.autograd.grad(y, (x, *parameters), dy)


def assert_close(name, actual, expected, terms=0., ulps=4):
    """Equal to ``ulps`` units of rounding of the largest value, or of ``terms`` if that is more.

    Of a sum, ``terms`` is that over the absolute values of its terms, of which much may cancel.
    """
    assert actual.shape == expected.shape, name
    rounded = expected.to(actual.dtype)  # to infinity, where the dtype ends
    for special in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(special(actual), special(rounded)), f'{name}: {special.__name__}'
    numbers = rounded.isfinite()
    if not numbers.any():
        return
    # the formula in float64 has rounding errors of its own
    ulps = 1e5 if actual.dtype == torch.float64 else ulps
    actual, expected, eps = actual[numbers], expected[numbers], torch.finfo(actual.dtype).eps
    # float32, in which the 16-bit types are computed, may count as 0 what is below its normal range
    least = 0. if actual.dtype == torch.float64 else torch.finfo(torch.float32).smallest_normal
    tolerance = ulps * eps * max(expected.abs().max().item(), terms) + least
    error = (actual.double() - expected).abs().max().item()
    assert error <= tolerance, f'{name}: error {error:.3g}, tolerance {tolerance:.3g}'


def wide(tensors):
    """In float64, to be differentiated if they are."""
    return [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]


PARAMETERS = 'cweight', 'cbias', 'sweight', 'sbias', 'gn_weight', 'gn_bias'


def sum_of_terms(dy, x, channels):
    """That of |dy x| for each of some channels."""
    return (dy.double().abs().nanmean() * x.double().abs().nanmean()).item() * x.numel() / channels


def terms_of_dx(dy, x, parameters, groups):
    """The largest of those that go through a plane's statistics, of which much may cancel."""
    n, c, h, w = x.shape
    p = c // (2 * groups)
    cweight, _, sweight, _, gn_weight, _ = (
        parameter.detach().double().view(p, 1, 1) for parameter in parameters)
    x, dy = (tensor.detach().double() for tensor in (x, channel_shuffle(dy, c // 2)))
    dz = (dy * x / 4).abs().reshape(n * groups, 2, p, h, w)
    variance = x.var((2, 3), correction=0).view(n * groups, 2, p, 1, 1)[:, 1]
    through_mean = cweight * dz[:, 0].mean((2, 3), keepdim=True)
    through_norm = sweight * gn_weight * (variance + 1e-5).rsqrt() * dz[:, 1]
    return max(terms.abs().max().item() for terms in (through_mean, through_norm))


def terms_of_y(x, parameters, groups):
    """The largest of those that add up to a plane's mean, of which much may cancel."""
    n, c, h, w = x.shape
    x = x.detach().double().abs().reshape(n * groups, 2, c // (2 * groups), h, w)[:, 0]
    cweight = parameters[0].detach().double().abs().flatten()
    return (cweight * x.mean((2, 3)) * x.amax((2, 3)) / 4).max().item()


def check(implementation, x, parameters, groups, dy, ulps=4, terms_of_y=0., terms_of_dx=0.):
    """Output and all gradients are those of the formula in float64, to some units of rounding."""
    ulps *= ULPS_OF_TRITON if implementation == 'triton' else 1
    actual = repeated(implementation, lambda name: gradients(
        lambda *args: shuffle_attention(*args, groups, implementation=name), x, parameters, dy))
    expected = gradients(
        where_it_is_fast(lambda *args: shuffle_attention_reference(*args, groups)), x.double(),
        wide(parameters), dy.double())

    terms = [terms_of_y, terms_of_dx, *[sum_of_terms(dy, x, x.shape[1] // (2 * groups))] * 6]
    for name, a, e, t in zip(('y', 'dx', *PARAMETERS), actual, expected, terms, strict=True):
        assert a.dtype == (x.dtype if name in ('y', 'dx') else parameters[0].dtype)
        assert_close(name, a, e, t, ulps)
    return actual


def random_batch_norm(c, dtype=torch.float32, mean=0., seed=4):
    """Weight and bias, which are differentiated, and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias, deviation, variance = torch.randn(4, c, generator=generator)
    weight, bias = (tensor.to(dtype).requires_grad_() for tensor in (weight, bias))
    return weight, bias, (mean + deviation).to(dtype), (variance.abs() + .5).to(dtype)


def normalised(z, batch_norm):
    """The input of the attention, in float64."""
    if batch_norm is None:
        return z.double()
    weight, bias, mean, variance = (tensor.detach().double() for tensor in batch_norm)
    return F.batch_norm(z.double(), mean, variance, weight, bias)


def random_identity(z, batch_norm, parameters, groups, seed=3):
    """One with which no sum is so close to 0 that rounding decides about the ReLU's derivative."""
    y = shuffle_attention_reference(
        normalised(z, batch_norm), *(tensor.detach().double() for tensor in parameters), groups)
    generator = torch.Generator().manual_seed(seed)
    distance = torch.rand(y.shape, generator=generator, dtype=y.dtype) * 1.8 - .9
    return ((distance + .1 * distance.sign()) * y.abs().max() - y).to(z.dtype)


def bottleneck_gradients(function, z, identity, batch_norm, parameters, dout):
    z, identity = (tensor.detach().requires_grad_() for tensor in (z, identity))
    out = function(z, identity, batch_norm, *parameters)
    tensors = z, identity, *(batch_norm or ())[:2], *parameters
    return out, *torch.autograd.grad(out, tensors, dout)


def check_bottleneck(implementation, z, identity, batch_norm, parameters, groups, dout, ulps=4,
               terms_of_dz=0.):
    """As ``check``, for what follows conv3 in a bottleneck."""
    ulps *= ULPS_OF_TRITON if implementation == 'triton' else 1
    actual = repeated(implementation, lambda name: bottleneck_gradients(
        lambda *args: fused_bn_sa_add_relu(*args, groups, implementation=name),
        z, identity, batch_norm, parameters, dout))
    reference = where_it_is_fast(
        lambda *args: fused_bn_sa_add_relu_reference(*args, groups=groups))
    expected = bottleneck_gradients(
        reference, z.double(), identity.double(), batch_norm and wide(batch_norm),
        wide(parameters), dout.double())

    out, dz, didentity, *of_parameters = actual
    assert out.dtype == dz.dtype == didentity.dtype == z.dtype
    assert_close('out', out, expected[0], ulps=ulps)
    assert_close('dz', dz, expected[1], terms_of_dz, ulps)
    assert torch.equal(didentity.double(), expected[2])

    x = normalised(z, batch_norm)
    names, tensors = PARAMETERS, parameters
    terms = [sum_of_terms(dout, x, z.shape[1] // (2 * groups))] * 6
    if batch_norm:
        dx = bottleneck_gradients(reference, x, identity.double(), None, wide(parameters),
                                  dout.double())[1]
        deviation = F.batch_norm(z.double(), *(tensor.double() for tensor in batch_norm[2:]))
        names, tensors = ('bn_weight', 'bn_bias', *names), (*batch_norm[:2], *tensors)
        terms = [*((dx * factor).abs().nansum((0, 2, 3)).max().item() for factor in (deviation, 1)),
                 *terms]
    for name, tensor, a, e, t in zip(
            names, tensors, of_parameters, expected[3:], terms, strict=True):
        assert a.dtype == tensor.dtype
        assert_close(name, a, e, t, ulps)
    return actual


def computed_by_onnxruntime(module, inputs, dynamo):
    """The output of a module exported to ONNX, in standard operators only."""
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    runtime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    if dynamo:
        pytest.importorskip('onnxscript', reason='onnxscript is not installed')
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(module, inputs, file, dynamo=dynamo)
    model = onnx.load_model_from_string(file.getvalue())
    assert {node.domain for node in model.graph.node} == {''}
    session = runtime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    output, = session.run(None, {
        entry.name: tensor.numpy()
        for entry, tensor in zip(session.get_inputs(), inputs, strict=True)})
    return torch.from_numpy(output)
