"""What holds of shuffle attention for every shape, dtype, layout and implementation.

Each property is tried on 60 examples (10 on a GPU), the same in every run (tests/conftest.py says
how to try others), of the reference, of each C++ library that this CPU can run, and of Triton.
"""
import warnings

import pytest
import torch
from drawn import FUSED, LAYOUTS, NOT_EXPANDED, calls
from fused import (
    BATCH_NORM,
    PARAMETERS,
    PLACES,
    assert_close,
    check,
    operands_around,
    poisoned_memory,
    random_input,
    terms_of_dz,
    terms_of_y,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from sa_mmdet.models import ShuffleAttention
from sa_mmdet.ops.reference import shuffle_attention_reference

# of NumPy, in which Triton's interpreter computes
pytestmark = pytest.mark.filterwarnings('ignore:.* encountered in:RuntimeWarning')

PLANES = st.integers(0, 2**16)


def shuffled(channels):
    """The channel from which each channel of the output comes."""
    return torch.arange(channels).view(2, -1).t().flatten()


def check_call(call, operands, dout):
    """Output and all gradients are those of the reference in float64."""
    terms = dict(z=terms_of_dz(operands, dout))
    if operands.identity is None:
        terms['out'] = terms_of_y(operands)
    check(call.implementation, operands, dout, ulps=16, terms=terms)


def place(call, plane):
    """Image and channel of one of the input's planes, and its channel in the output."""
    n, c = divmod(plane % (call.shape[0] * call.shape[1]), call.shape[1])
    return n, c, shuffled(call.shape[1]).tolist().index(c)


def others(tensor, n, c):
    """All planes but one."""
    kept = torch.ones(tensor.shape[:2], dtype=torch.bool)
    kept[n, c] = False
    return tensor[kept]


def assert_elements_close(y, x, gates, ulps):
    """y = x gates, to units of rounding of each element.

    Gates may end at e^-87, those in float64 at e^-700; in between, elements at the smallest number.
    """
    expected, numbers = x * gates, torch.finfo(y.dtype)
    least = 1e-303 if y.dtype == torch.float64 else 2e-38
    tolerance = ulps * numbers.eps * (expected.abs() + numbers.smallest_normal) + least * x.abs()
    assert ((y - expected).abs() <= tolerance).all()


# Planes


@given(call=calls(), plane=PLANES)
def test_planes_are_independent(call, plane):
    n, c, to = place(call, plane)
    before = call.attend(call.x)
    values = call.values()
    values[n, c] = torch.where(values[n, c] > 0, -2., 2.)
    after = call.attend(call.lay(values))
    assert torch.equal(others(before, n, to), others(after, n, to))
    assert (before[n, to] != after[n, to]).all()


@given(call=calls(), plane=PLANES, poison=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
       in_gradient=st.booleans())
def test_nan_and_infinity_stay_in_their_plane(call, plane, poison, in_gradient):
    """And in the gradients of the parameters that the plane shares with others of its kind."""
    n, c, to = place(call, plane)
    x, dy = call.x, call.dy
    before = call.results(x, dy)
    values = (dy if in_gradient else x).clone()
    values[n, to if in_gradient else c, 0, -1] = poison
    poisoned = call.lay(values)
    after = call.results(*(x, poisoned) if in_gradient else (poisoned, dy))

    assert torch.equal(*(others(results['out'], n, to) for results in (before, after)))
    assert torch.equal(*(others(results['z'], n, c) for results in (before, after)))
    assert not after['z'][n, c].isfinite().all()
    if in_gradient:
        assert torch.equal(before['out'], after['out'])
    else:
        assert not after['out'][n, to].isfinite().all()
    index, is_spatial = c % call.p, c // call.p % 2 == 1
    for i, name in enumerate(PARAMETERS):
        untouched, touched = before[name].flatten(), after[name].flatten()
        of_its_kind = torch.arange(call.p) == (index if (i >= 2) == is_spatial else -1)
        assert call.same(touched[~of_its_kind], untouched[~of_its_kind])
        assert not touched[of_its_kind].isfinite().any()


@given(call=calls(images=st.integers(2, 3)))
def test_a_batch_is_its_images(call):
    x, dy = call.x, call.dy
    of_batch = call.results(x, dy)
    for i in range(len(x)):
        of_image = call.results(x[i:i + 1], dy[i:i + 1])
        for name in ('out', 'z'):
            assert call.same(of_image[name], of_batch[name][i:i + 1])


@given(call=calls(), order=st.randoms(use_true_random=False))
def test_groups_are_exchangeable(call, order):
    n, c, h, w = call.shape
    permutation = order.sample(range(call.groups), call.groups)

    def permuted(x):
        return x.reshape(n, call.groups, -1, h, w)[:, permutation].reshape(call.shape)

    inverse = shuffled(c).argsort()
    y = call.attend(call.x)[:, inverse]
    assert call.same(call.attend(call.lay(permuted(call.values())))[:, inverse], permuted(y))


@given(call=calls(shifts=[0.]))
def test_positions_are_exchangeable(call):
    x = call.x
    permutation = torch.randperm(x.shape[2] * x.shape[3],
                                 generator=torch.Generator().manual_seed(call.seed))

    def permuted(x):
        return x.flatten(2)[..., permutation].view(x.shape)

    assert_close('y', call.attend(permuted(x)), permuted(call.attend(x)).double(),
                 ulps=16)


# The shuffle


@given(call=calls())
def test_shuffle_is_a_permutation(call):
    """All that is left where the gates are constant; the layer knows its inverse."""
    layer = ShuffleAttention(call.shape[1], call.groups)
    state, factor = layer.neutral_state()
    layer.load_state_dict(state)
    x = call.x
    there = call.attend(x, parameters=layer.operands)
    assert_elements_close(there, x[:, shuffled(x.shape[1])].double(), factor, ulps=4)
    back = call.attend(x[:, layer.source_channels()], parameters=layer.operands)
    assert_elements_close(back, x.double(), factor, ulps=4)


@given(call=calls(['reference']), ablation=st.sampled_from(['none', 'gn', 'fc', 'both']))
def test_without_shuffle_the_channels_stay(call, ablation):
    parameters = call.parameters
    if ablation in ('fc', 'both'):
        parameters[:4] = [None] * 4
    if ablation in ('gn', 'both'):
        parameters[4:] = [None] * 2
    y, unshuffled = (
        shuffle_attention_reference(call.x, *parameters, call.groups, shuffle=shuffle)
        for shuffle in (True, False))
    assert torch.equal(y, unshuffled[:, shuffled(call.shape[1])])


# The gates


def whole_numbers(call, limit=7):
    """Values with which sums and differences are exact in every dtype."""
    generator = torch.Generator().manual_seed(call.seed)
    return torch.randint(-limit, limit + 1, call.shape, generator=generator).to(call.dtype)


def same_gates(y, x, other_y, other_x):
    """Whether y / x is other_y / other_x, to the rounding of y."""
    x, other_y, other_x = (tensor.double() for tensor in (x, other_y, other_x))
    difference = (y.double() * other_x - other_y * x).abs()
    ulps = 1e3 if y.dtype == torch.float64 else 16
    tolerance = ulps * torch.finfo(y.dtype).eps * (x * other_x).abs().max()
    return (difference <= tolerance).all()


@given(call=calls())
def test_gates_lie_between_0_and_1(call):
    x = call.x
    y, x = call.attend(x), x[:, shuffled(call.shape[1])]
    assert (y.abs() <= x.abs()).all()
    assert (y * x.sign() >= 0).all()


@given(call=calls(), factor=st.sampled_from([.5, 1., 2., 4.]), summand=st.integers(-16, 16))
def test_spatial_gate_is_that_of_the_scaled_and_shifted_plane(call, factor, summand):
    """With an eps scaled likewise."""
    spatial = shuffled(call.shape[1]) // call.p % 2 == 1
    x = whole_numbers(call)
    other = factor * x + summand
    y = call.attend(call.lay(x), eps=1.)
    other_y = call.attend(call.lay(other), eps=factor**2)
    x, other = (LAYOUTS[call.layout](tensor)[:, shuffled(call.shape[1])] for tensor in (x, other))
    assert same_gates(*(tensor[:, spatial] for tensor in (y, x, other_y, other)))


@given(call=calls(layouts=NOT_EXPANDED), data=st.data())
def test_channel_gate_is_that_of_the_mean(call, data):
    of_channel = shuffled(call.shape[1]) // call.p % 2 == 0
    x = whole_numbers(call)
    n, c, h, w = call.shape
    take, give = (data.draw(st.integers(0, h * w - 1)) for _ in range(2))
    other = x.clone()
    other.view(n, c, -1)[..., take] -= 5
    other.view(n, c, -1)[..., give] += 5
    y, other_y = (call.attend(call.lay(tensor)) for tensor in (x, other))
    x, other = (tensor[:, shuffled(c)] for tensor in (x, other))
    assert same_gates(*(tensor[:, of_channel] for tensor in (y, x, other_y, other)))


# Extreme values


CONSTANTS = {
    torch.float32: [0., 1e-45, 1e-38, 1., -1e4, 1e18, -1e30],
    torch.float64: [0., 5e-324, 1., -1e4, 1e100],
    torch.bfloat16: [0., 1e-40, 1., -1e4, 1e18, -1e30],
    torch.float16: [0., 6e-8, 6.1e-5, 1., 1e4, -65504.],
}


@given(call=calls(FUSED), data=st.data())
def test_constant_planes(call, data):
    """The reference itself loses its digits here: PyTorch's group norm cancels."""
    values = torch.empty((*call.shape[:2], 1, 1), dtype=call.dtype)
    for plane in values.view(-1, 1):
        plane.fill_(data.draw(st.sampled_from(CONSTANTS[call.dtype])))
    values = values.expand(call.shape).contiguous()
    cweight, cbias, sweight, sbias, _, gn_bias = (
        parameter.detach().double().flatten() for parameter in call.parameters)
    x = values[:, :, :1, :1].double()
    grouped = x.view(-1, 2, call.p)
    logit = torch.stack([cweight * grouped[:, 0] + cbias,
                         (sweight * gn_bias + sbias).expand_as(grouped[:, 1])], 1)
    x, gates = (tensor[:, shuffled(call.shape[1])] for tensor in (x, logit.sigmoid().view_as(x)))
    assert_elements_close(call.attend(call.lay(values)), x, gates, ulps=32)
    assert not call.results(call.lay(values), call.dy)['z'].isnan().any()


# With powers of two sums are exact, as those of float16's largest are. Triton's interpreter makes
# bfloat16 below 1e-38 zero.
EXTREMES = {
    torch.float32: [0., 1e-45, -1e-38, -2.**50, 2.**50],
    torch.float64: [0., 5e-324, -1e-308, -2.**400, 2.**400],
    torch.bfloat16: [0., 1e-40, -1e-36, -2.**50, 2.**50],
    torch.float16: [0., 6e-8, -6.1e-5, -65504., 65504.],
}


@given(call=calls(FUSED), smallest=st.booleans())
def test_extreme_values(call, smallest):
    choices = torch.tensor(EXTREMES[call.dtype], dtype=call.dtype)[:3 if smallest else None]
    generator = torch.Generator().manual_seed(call.seed)
    x = choices[torch.randint(len(choices), call.shape, generator=generator)]
    if not smallest:  # of large planes that are constant the reference loses the digits
        assume(call.shape[3] > 1)
        x[..., :2] = choices[-2:]
    check_call(call, call.operands(call.lay(x)), call.dy)


# No images, no pixels


@pytest.mark.parametrize('in_bottleneck', [False, True])
@given(call=calls(images=st.just(0)))
def test_no_images(call, in_bottleneck):
    results = call.results(call.x, call.dy, identity=call.dy if in_bottleneck else None)
    for name, tensor in results.items():
        if name in PARAMETERS + BATCH_NORM:
            assert (tensor == 0).all()
        else:
            assert tensor.shape == call.shape
            assert tensor.dtype == call.dtype


@given(call=calls(images=st.integers(0, 2), sizes=st.sampled_from([0, 0, 1, 3])))
def test_no_pixels(call):
    assume(0 in call.shape[2:])
    x = torch.zeros(call.shape, dtype=call.dtype)
    for identity in (None, x):
        with pytest.raises(ValueError, match='planes without pixels'):
            call.attend(x, identity)


# The reference and its derivative


@given(call=calls(FUSED), dy_layout=st.sampled_from(list(LAYOUTS)))
def test_equals_reference(call, dy_layout):
    dy = LAYOUTS[dy_layout](random_input(call.shape, call.dtype, seed=call.seed + 1))
    check_call(call, call.operands(call.x), dy)


# Of an identity whose rows are expanded, sums would not be far from 0.
@given(call=calls(FUSED, layouts=NOT_EXPANDED), place=st.sampled_from(PLACES[1:]))
def test_equals_reference_in_a_bottleneck(call, place):
    operands = operands_around(
        call.x, place, call.groups, call.layout, parameters=call.parameters,
        batch_norm=call.batch_norm if place == 'bottleneck' else None)
    check_call(call, operands, call.dy)


@given(call=calls(scales=[1.], shifts=[0.]), power=st.integers(-3, 6))
def test_gradients_scale_with_dy(call, power):
    assume(call.dtype != torch.float16)  # in which small gradients have fewer digits
    x, dy = call.x, call.dy
    once, scaled = call.results(x, dy), call.results(x, dy * 2.**power)
    for name in ('z', *PARAMETERS):
        assert torch.equal(once[name] * 2.**power, scaled[name])


@given(call=calls(shifts=[0.]))
def test_gradients_add_up(call):
    x = call.x
    dy, other = whole_numbers(call), whole_numbers(call).flip(2, 3)
    of_sum, one, other_one = (
        call.results(x, call.lay(dy)) for dy in (dy + other, dy, other))
    of_parameters = 14 * x.double().abs().mean().item() * x.numel() / call.p
    of_x = terms_of_dz(call.operands(x), call.lay(dy.abs() + other.abs()))
    terms = dict.fromkeys(PARAMETERS, of_parameters) | dict(
        z=max(of_x, one['z'].abs().max().item()))
    if call.implementation == 'reference':
        # PyTorch's group norm takes the difference of two sums and divides it by the deviation: in
        # a plane that is almost constant the difference is rounding, on some processors
        variance = x.double().var((2, 3), correction=0)
        condition = x.double().abs().amax((2, 3)) * (variance + 1e-5).rsqrt()
        condition = condition.where(variance < 1e-5, 1.).max().item()
        for name in ('sweight', 'gn_weight'):
            terms[name] *= max(1., condition)
    for name, t in terms.items():
        assert_close(name, of_sum[name], one[name].double() + other_one[name].double(), t, ulps=16)


@given(call=calls())
def test_deterministic_mode_changes_no_bit(call):
    """Nor is an element left as it came: in this mode PyTorch fills new memory with NaN."""
    x, dy = call.x, call.dy

    def computed():
        return *call.results(x, dy).values(), call.attend(x, identity=dy)

    expected = computed()
    with poisoned_memory(), warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        actual = computed()
    assert all(map(torch.equal, actual, expected))


# In a bottleneck


@given(call=calls(), plane=PLANES, of_identity=st.booleans())
def test_planes_in_a_bottleneck_are_independent(call, plane, of_identity):
    n, c, to = place(call, plane)
    z, identity = call.x, call.dy.abs() + 1
    before = call.attend(z, identity)
    changed = (identity if of_identity else z).clone()
    changed[n, to if of_identity else c, 0, -1] = torch.nan
    changed = call.lay(changed)
    after = call.attend(z, changed) if of_identity else call.attend(changed, identity)
    assert torch.equal(others(before, n, to), others(after, n, to))
    nan = after[n, to].isnan()
    assert nan[0, -1]  # as PyTorch's ReLU keeps it
    if of_identity:
        assert torch.equal(nan, changed[n, to].isnan())
