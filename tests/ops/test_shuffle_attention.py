"""The reference and the authors' module, and what is computed by default."""
from pathlib import Path

import numpy as np
import pytest
import torch
from fused import random_parameters

from sa_mmdet.ops import shuffle_attention
from sa_mmdet.ops.reference import channel_shuffle, shuffle_attention_reference

GOLDEN = sorted((Path(__file__).parents[1] / 'data').glob('sa_layer_*.npz'))
PARAMETERS = ('cweight', 'cbias', 'sweight', 'sbias', 'gn.weight', 'gn.bias')


@pytest.mark.parametrize('path', GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
def test_equals_authors_module(path, dtype):
    """Output and all gradients of the authors' module, computed in float64."""
    golden = np.load(path)
    tensors = [torch.from_numpy(golden[key]).to(dtype).requires_grad_()
               for key in ('x', *(f'param.{name}' for name in PARAMETERS))]
    y = shuffle_attention(*tensors, int(golden['groups']))
    grads = torch.autograd.grad(y, tensors, torch.from_numpy(golden['dy']).to(dtype))
    expected_keys = ('y', 'dx', *(f'grad.{name}' for name in PARAMETERS))
    for actual, key in zip((y, *grads), expected_keys, strict=True):
        expected = torch.from_numpy(golden[key])
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


def test_there_are_golden_files():
    assert len(GOLDEN) == 3


@pytest.mark.parametrize('shuffle', [True, False])
@pytest.mark.parametrize('fc', ['affine', 'conv', 'none'])
@pytest.mark.parametrize('gn', [True, False])
def test_gradcheck(shuffle, fc, gn):
    groups, p = 2, 3
    x = torch.randn(2, 2 * groups * p, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = random_parameters(p, torch.float64)
    if fc == 'none':
        parameters[:4] = [None] * 4
    elif fc == 'conv':
        for i in (0, 2):
            parameters[i] = torch.randn(p, p, 1, 1, dtype=torch.float64, requires_grad=True)
    if not gn:
        parameters[4:] = [None] * 2
    assert torch.autograd.gradcheck(
        lambda *tensors: shuffle_attention_reference(*tensors, groups, shuffle=shuffle),
        (x, *parameters))


def test_channel_shuffle_places_channels():
    c = 12
    x = torch.arange(c).view(1, c, 1, 1)
    out = channel_shuffle(x, 2).flatten()
    for i in range(c // 2):
        for k in range(2):
            assert out[2 * i + k] == k * c // 2 + i


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_accurate(dtype):
    x = (torch.randn(2, 64, 9, 7) * 4 + 2).to(dtype)
    parameters = random_parameters(4, dtype)
    y = shuffle_attention(x, *parameters, 8)
    expected = shuffle_attention(x.double(), *(p.double() for p in parameters), 8)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize('shape', [(0, 8, 4, 4), (1, 8, 1, 1), (3, 8, 1, 5), (2, 8, 7, 3)], ids=str)
def test_odd_shapes(shape):
    x = torch.randn(shape)
    y = shuffle_attention(x, *random_parameters(2), 2)
    assert y.shape == shape
    assert y.isfinite().all()
