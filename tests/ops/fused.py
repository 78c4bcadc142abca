"""Running the fused implementations beside the reference in float64.

Triton's kernels run on the GPU where there is one (test_on_gpu.py), else in Triton's interpreter.
The tests make CPU tensors: what goes to Triton is moved to the GPU, strides kept, and comes back.
"""
import io
import os
import warnings
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

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
    def there(tensor):
        return Move.apply(tensor, MOVE_TO) if tensor.requires_grad else moved(tensor, MOVE_TO)

    return value if MOVE_TO is None else tree_map_only(torch.Tensor, there, value)


def where_it_is_fast(function):
    """Computes where Triton does: in float64 the CPU takes minutes for large planes."""
    if MOVE_TO is None:
        return function
    return lambda operands: Move.apply(function(where_triton_runs(operands)), 'cpu')


# Where the operator stands: alone, or between conv3 and the end of a bottleneck.
PLACES = ('alone', 'bottleneck', 'bottleneck without batch norm')
PARAMETERS = 'cweight', 'cbias', 'sweight', 'sbias', 'gn_weight', 'gn_bias'
BATCH_NORM = 'bn_weight', 'bn_bias'


class Operands(NamedTuple):
    """What the operator takes: without an identity it is shuffle attention alone."""
    z: torch.Tensor
    identity: torch.Tensor | None
    batch_norm: tuple[torch.Tensor, ...] | None
    parameters: list[torch.Tensor]
    groups: int

    def differentiable(self):
        """Those that have a gradient, by name."""
        tensors = dict(z=self.z)
        if self.identity is not None:
            tensors['identity'] = self.identity
        if self.batch_norm:
            tensors |= zip(BATCH_NORM, self.batch_norm[:2], strict=True)
        return tensors | dict(zip(PARAMETERS, self.parameters, strict=True))

    def made_of(self, tensors):
        """These operands with other differentiable ones."""
        tensors = dict(zip(self.differentiable(), tensors, strict=True))
        batch_norm = self.batch_norm and (
            *(tensors[name] for name in BATCH_NORM), *self.batch_norm[2:])
        return self._replace(
            z=tensors['z'], identity=tensors.get('identity'), batch_norm=batch_norm,
            parameters=[tensors[name] for name in PARAMETERS])

    def double(self):
        return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().double(), self)


def attend(operands, implementation=None, **options):
    """The operator, as a function of its operands."""
    def compute(operands):
        z, identity, batch_norm, parameters, groups = operands
        if identity is None:
            function, surroundings = ops.shuffle_attention, ()
        else:
            function, surroundings = ops.fused_bn_sa_add_relu, (identity, batch_norm)
        return function(z, *surroundings, *parameters, groups, implementation=implementation,
                        **options)

    if 'triton' in (implementation, os.environ.get('SA_MMDET_OPS')):
        compute = where_it_is_fast(compute)
    return compute(operands)


def reference(operands):
    z, identity, batch_norm, parameters, groups = operands
    if identity is None:
        return shuffle_attention_reference(z, *parameters, groups)
    return fused_bn_sa_add_relu_reference(z, identity, batch_norm, *parameters, groups=groups)


def gradients(function, operands, dout):
    """The output, and the gradients of the operands, by name."""
    tensors = {name: tensor.detach().requires_grad_()
               for name, tensor in operands.differentiable().items()}
    out = function(operands.made_of(tensors.values()))
    of_tensors = torch.autograd.grad(out, list(tensors.values()), dout)
    return dict(out=out) | dict(zip(tensors, of_tensors, strict=True))


def random_parameters(p, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, p, 1, 1)] * 4 + [(p, )] * 2
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


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


def random_batch_norm(c, dtype=torch.float32, mean=0., seed=4):
    """Weight and bias, which are differentiated, and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias, deviation, variance = torch.randn(4, c, generator=generator)
    weight, bias = (tensor.to(dtype).requires_grad_() for tensor in (weight, bias))
    return weight, bias, (mean + deviation).to(dtype), (variance.abs() + .5).to(dtype)


def normalised(operands):
    """The input of the attention, in float64."""
    z, _, batch_norm, *_ = operands.double()
    if batch_norm is None:
        return z
    weight, bias, mean, variance = batch_norm
    return F.batch_norm(z, mean, variance, weight, bias)


def random_identity(operands, seed=3):
    """One with which no sum is so close to 0 that rounding decides about the ReLU's derivative."""
    y = reference(operands.double()._replace(
        z=normalised(operands), identity=None, batch_norm=None))
    generator = torch.Generator().manual_seed(seed)
    distance = torch.rand(y.shape, generator=generator, dtype=y.dtype) * 1.8 - .9
    return ((distance + .1 * distance.sign()) * y.abs().max() - y).to(operands.z.dtype)


def operands_around(z, place, groups=2, layout='contiguous', mean=0., parameters=None,
                    batch_norm=None):
    """The operands with this z; what is not given is random, in a network's dtype."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    if parameters is None:
        parameters = random_parameters(z.shape[1] // (2 * groups), dtype)
    if place == 'bottleneck' and batch_norm is None:
        batch_norm = random_batch_norm(z.shape[1], dtype, mean)
    operands = Operands(z, None, batch_norm, parameters, groups)
    if place == 'alone':
        return operands
    return operands._replace(identity=LAYOUTS[layout](random_identity(operands)))


def random_operands(shape, place, groups=2, dtype=torch.float32, layout='contiguous', shift=0.,
                    **others):
    """Operands and the gradient of the output; ``others`` are those of ``operands_around``."""
    z = random_input(shape, dtype, layout, shift=shift)
    others = dict(mean=shift) | others
    return (operands_around(z, place, groups, layout, **others),
            random_input(shape, dtype, layout, seed=2))


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
    # the reference in float64 has rounding errors of its own
    ulps = 1e5 if actual.dtype == torch.float64 else ulps
    actual, expected, eps = actual[numbers], expected[numbers], torch.finfo(actual.dtype).eps
    # float32, in which the 16-bit types are computed, may count as 0 what is below its normal range
    least = 0. if actual.dtype == torch.float64 else torch.finfo(torch.float32).smallest_normal
    tolerance = ulps * eps * max(expected.abs().max().item(), terms) + least
    error = (actual.double() - expected).abs().max().item()
    assert error <= tolerance, f'{name}: error {error:.3g}, tolerance {tolerance:.3g}'


def terms_of_dz(operands, dout):
    """The largest of those that go through a plane's statistics, of which much may cancel."""
    x = normalised(operands)
    _, c, h, w = x.shape
    p = c // (2 * operands.groups)
    cweight, _, sweight, _, gn_weight, _ = (
        parameter.view(p, 1, 1) for parameter in operands.double().parameters)
    dy = channel_shuffle(dout.detach().double(), c // 2)
    dz = (dy * x / 4).abs().reshape(-1, 2, p, h, w)
    variance = x.var((2, 3), correction=0).view(-1, 2, p, 1, 1)[:, 1]
    through_mean = cweight * dz[:, 0].mean((2, 3), keepdim=True)
    through_norm = sweight * gn_weight * (variance + 1e-5).rsqrt() * dz[:, 1]
    largest = max(terms.abs().max().item() for terms in (through_mean, through_norm))
    if operands.batch_norm:
        weight, _, _, variance = operands.batch_norm
        largest *= (weight / variance.sqrt()).abs().max().item()
    return largest


def terms_of_y(operands):
    """The largest of those that add up to a plane's mean, of which much may cancel."""
    x, _, _, (cweight, *_), groups = operands.double()
    _, c, h, w = x.shape
    x, cweight = x.abs().reshape(-1, 2, c // (2 * groups), h, w)[:, 0], cweight.abs().flatten()
    return (cweight * x.mean((2, 3)) * x.amax((2, 3)) / 4).max().item()


def terms_of_parameters(operands, dout):
    """Those that add up to the gradients of the parameters and of the batch norm, by name."""
    x = normalised(operands)
    mean = (dout.double().abs().nanmean() * x.abs().nanmean()).item()
    terms = dict.fromkeys(PARAMETERS, mean * x.numel() / operands.parameters[0].numel())
    if operands.batch_norm is None:
        return terms
    z, _, (*_, mean, variance), *_ = operands.double()
    after_batch_norm = operands.double()._replace(z=x, batch_norm=None)
    dx = gradients(where_it_is_fast(reference), after_batch_norm, dout.double())['z']
    for name, factor in zip(BATCH_NORM, (F.batch_norm(z, mean, variance), 1), strict=True):
        terms[name] = (dx * factor).abs().nansum((0, 2, 3)).max().item()
    return terms


def check(implementation, operands, dout, ulps=4, terms=None):
    """Output and all gradients are those of the reference in float64, to some units of rounding.

    A second run gives the same bits. ``terms`` are those of ``assert_close`` for 'out' and 'z'.
    """
    ulps *= ULPS_OF_TRITON if implementation == 'triton' else 1
    with forced(implementation) as name:
        actual, again = (gradients(lambda operands: attend(operands, name), operands, dout)
                         for _ in range(2))
    torch.testing.assert_close(actual, again, rtol=0, atol=0, equal_nan=True)
    expected = gradients(where_it_is_fast(reference), operands.double(), dout.double())
    terms = (terms or {}) | terms_of_parameters(operands, dout)
    for name, operand in (dict(out=operands.z) | operands.differentiable()).items():
        assert actual[name].dtype == operand.dtype
        if name == 'identity':
            assert torch.equal(actual[name].double(), expected[name])
        else:
            assert_close(name, actual[name], expected[name], terms.get(name, 0.), ulps)
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
