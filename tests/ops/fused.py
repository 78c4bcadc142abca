"""Running the fused implementations beside the formula in float64."""
from contextlib import contextmanager

import pytest
import torch

from sa_mmdet.ops.shuffle_attention import (
    cpu,
    implementations,
    shuffle_attention,
    shuffle_attention_reference,
)

# 'cpu-avx2' and so on are the C++ implementation by one of its libraries.
LIBRARIES = tuple(f'cpu-{name}' for name in cpu.CAPABILITIES)


def require(implementation):
    """Skip where the implementation cannot be used, saying why."""
    name = implementation.split('-')[0]
    if reason := implementations()[name]:
        pytest.skip(reason)
    if implementation in LIBRARIES:
        loaded = cpu.capability()[0]
        if LIBRARIES.index(implementation) < LIBRARIES.index(f'cpu-{loaded}'):
            pytest.skip('this CPU has no ' + implementation)


@contextmanager
def forced(implementation):
    """The name to force, while exactly the given library computes it."""
    require(implementation)
    name, _, capability = implementation.partition('-')
    with pytest.MonkeyPatch.context() as patch:
        if capability:
            library = cpu.library(capability)
            torch.ops.load_library(library)
            patch.setattr(cpu, 'operators', lambda: cpu.operators_of(capability))
        yield name


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


def gradients(function, x, parameters, dy):
    x = x.detach().requires_grad_()
    y = function(x, *parameters)
    return y, *torch.autograd.grad(y, (x, *parameters), dy)


def check(implementation, x, parameters, groups, dy):
    """Output and all gradients are those of the formula in float64, to some units of rounding.

    Of dx and y that is a unit of the largest value; of a parameter's gradient, of the sum over the
    absolute values of its terms, of which much may cancel.
    """
    with forced(implementation) as name:
        actual = gradients(
            lambda *args: shuffle_attention(*args, groups, implementation=name), x, parameters, dy)
    wide = [parameter.detach().double().requires_grad_() for parameter in parameters]
    expected = gradients(
        lambda *args: shuffle_attention_reference(*args, groups), x.double(), wide, dy.double())

    # the formula in float64 has rounding errors of its own
    ulps = 1e5 if x.dtype == torch.float64 else 4
    terms = (dy.double().abs().mean() * x.double().abs().mean() * x.numel()
             / (x.shape[1] // (2 * groups))).item()
    names = 'y', 'dx', 'cweight', 'cbias', 'sweight', 'sbias', 'gn_weight', 'gn_bias'
    for name, a, e in zip(names, actual, expected, strict=True):
        assert a.dtype == (x.dtype if name in ('y', 'dx') else parameters[0].dtype)
        assert a.shape == e.shape
        if not a.numel():
            continue
        largest = e.abs().max().item()
        if name in ('y', 'dx'):
            tolerance = ulps * torch.finfo(x.dtype).eps * largest
        else:
            tolerance = ulps * torch.finfo(a.dtype).eps * max(largest, terms)
        error = (a.double() - e).abs().max().item()
        assert error <= tolerance, f'{name}: error {error:.3g}, tolerance {tolerance:.3g}'
    return actual
