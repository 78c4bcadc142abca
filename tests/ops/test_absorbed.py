"""Planes that gate themselves in place: shuffle attention whose shuffle conv3 has done."""
import pytest
import torch
import torch.nn.functional as F
from fused import DTYPES, LAYOUTS, LIBRARIES, forced, random_input, random_parameters, require

from sa_mmdet.models import ShuffleAttention
from sa_mmdet.models.gated_conv import absorb
from sa_mmdet.ops.absorbed import gate, gate_reference
from sa_mmdet.ops.reference import shuffle_attention_reference

SHAPES = [(2, 8, 7, 5), (3, 24, 1, 1), (1, 256, 5, 3), (2, 6, 33, 41), (1, 4, 1, 9001),
          (0, 8, 4, 4)]


def random_channels(channels: int, dtype=torch.float32):
    """Slope, of_mean, constant and center: half of the channels without a slope."""
    generator = torch.Generator().manual_seed(3)
    slope, *others = torch.randn(4, channels, generator=generator, dtype=dtype)
    return slope * (torch.arange(channels) // 2 % 2), *others


@pytest.mark.parametrize('implementation', LIBRARIES)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_equals_reference(implementation, dtype, layout, shape):
    """And is written over its input."""
    parameters = random_channels(shape[1])
    for shift in (0, 100):
        z = random_input(shape, dtype, layout, shift=shift)
        for identity in (None, random_input(shape, dtype, layout, seed=1)):
            expected = gate_reference(z.double(), [p.double() for p in parameters], 1e-5)
            if identity is not None:
                expected = F.relu(expected + identity.double())
            given = z.clone(memory_format=torch.preserve_format)
            with forced(implementation), torch.no_grad():
                actual = gate(given, identity, parameters, 1e-5)
            assert actual.data_ptr() == given.data_ptr()
            assert actual.stride() == given.stride()
            assert actual.dtype == dtype
            if expected.numel():
                error = (actual.double() - expected).abs().max() / expected.abs().max()
                assert error < max(2e-6 if shift else 1e-6, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_identity_of_any_strides(layout):
    require('cpu')
    parameters = random_channels(8)
    z = random_input((2, 8, 6, 5), torch.float32)
    identity = LAYOUTS[layout](random_input((2, 8, 6, 5), torch.float32, seed=1))
    with torch.no_grad():
        expected = F.relu(gate_reference(z, parameters, 1e-5) + identity)
        torch.testing.assert_close(gate(z, identity, parameters, 1e-5), expected)


@pytest.mark.parametrize('groups', [1, 2, 8])
@pytest.mark.parametrize('gn', [True, False])
@pytest.mark.parametrize('shuffle', [True, False])
def test_is_shuffle_attention(groups, gn, shuffle):
    """Of channels that stand in the order of its output."""
    attention = ShuffleAttention(32, groups, gn=gn, shuffle=shuffle).double()
    for parameter, value in zip(attention.parameters(), random_parameters(32 // (2 * groups),
                                torch.float64), strict=False):
        parameter.data.copy_(value.view_as(parameter))
    x = random_input((2, 32, 5, 7), torch.float64)
    weight, bias, parameters = absorb(torch.eye(32).double().view(32, 32, 1, 1),
                                      torch.zeros(32).double(), torch.ones(32).double(), attention)
    actual = gate_reference(F.conv2d(x, weight, bias), parameters, attention.eps if gn else None)
    expected = shuffle_attention_reference(x, *attention._ablated_operands(), groups,
                                           attention.eps, shuffle)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_formula():
    """Where they are wanted nothing is written over."""
    parameters = random_channels(8, torch.float64)
    z, identity = (random_input((2, 8, 3, 4), torch.float64, seed=seed).requires_grad_()
                   for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda z, identity: gate(z + 0, identity, parameters, 1e-5),
                                    (z, identity))
    with torch.enable_grad():
        frozen = z.detach()
        before = frozen.clone()
        gate(frozen, identity, parameters, 1e-5)  # a gradient for the identity alone
    assert torch.equal(frozen, before)


def test_wrong_operands_are_refused():
    """They would be read beyond their ends."""
    require('cpu')
    z, (slope, *others) = torch.zeros(1, 8, 2, 2), random_channels(8)
    for identity, parameters in ((torch.zeros(1, 8, 2, 1), (slope, *others)),
                                 (None, (slope[:4], *others)),
                                 (None, (slope, slope))):
        with pytest.raises(ValueError, match=r'must have|has 4 values|must be four'):
            gate(z, identity, parameters, 1e-5)
