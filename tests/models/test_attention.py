import math

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn
from torch.nn import functional as F

import sa_mmdet.models as models
from networks import LAYERS, small
from sa_mmdet.models import (
    CBAM,
    EfficientChannelAttention,
    ShuffleAttention,
    SpatialGroupEnhance,
    SqueezeExcitation,
)
from sa_mmdet.ops.reference import channel_shuffle

SMALL = [(layer, small(layer, kernel_size=3)) for layer in LAYERS]


def randomise(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def expected_shuffle_attention(layer, x, norm=True, shuffle=True, fc='affine'):
    """Section 2's steps, one group and one channel at a time."""
    n, c, h, w = x.shape
    p = c // (2 * layer.groups)
    y = torch.empty_like(x)

    def transform(branch, z):  # (N, p, H', W')
        if fc == 'none':
            return z
        if fc == 'conv':
            conv = layer.channel_conv if branch == 'c' else layer.spatial_conv
            mixed = torch.einsum('oi,nihw->nohw', conv.weight[:, :, 0, 0], z)
            return mixed + conv.bias.view(1, p, 1, 1)
        return getattr(layer, f'{branch}weight') * z + getattr(layer, f'{branch}bias')

    for g in range(layer.groups):
        start = 2 * p * g
        x_c, x_s = x[:, start:start + p], x[:, start + p:start + 2 * p]
        y[:, start:start + p] = x_c * torch.sigmoid(transform('c', x_c.mean((2, 3), keepdim=True)))
        z = x_s
        if norm:
            mean = x_s.mean((2, 3), keepdim=True)
            variance = ((x_s - mean)**2).mean((2, 3), keepdim=True)
            z = (x_s - mean) / torch.sqrt(variance + layer.eps)
            z = z * layer.gn.weight.view(1, p, 1, 1) + layer.gn.bias.view(1, p, 1, 1)
        y[:, start + p:start + 2 * p] = x_s * torch.sigmoid(transform('s', z))
    if not shuffle:
        return y
    return torch.stack([y[:, :c // 2], y[:, c // 2:]], 2).reshape(n, c, h, w)


@pytest.mark.parametrize(('options', 'hand_written'), [
    ({}, {}),
    (dict(gn=False), dict(norm=False)),
    (dict(shuffle=False), dict(shuffle=False)),
    (dict(fc='none'), dict(fc='none')),
    (dict(fc='conv'), dict(fc='conv')),
], ids=['origin', 'without_gn', 'without_shuffle', 'without_fc', 'conv'])
def test_shuffle_attention_and_its_ablations(options, hand_written):
    layer = randomise(ShuffleAttention(24, groups=3, **options)).double()
    x = torch.randn(2, 24, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        layer(x), expected_shuffle_attention(layer, x, **hand_written), rtol=1e-12, atol=1e-12)


def test_shuffle_attention_parameters():
    layer = ShuffleAttention(256)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {
        **dict.fromkeys(['cweight', 'cbias', 'sweight', 'sbias'], (1, 2, 1, 1)),
        'gn.weight': (2, ), 'gn.bias': (2, )}
    initial = {name: value.unique().item() for name, value in layer.state_dict().items()}
    assert initial == dict(cweight=0, cbias=1, sweight=0, sbias=1) | {'gn.weight': 1, 'gn.bias': 0}


def test_squeeze_excitation():
    layer = SqueezeExcitation(32, reduction=4).double()
    x = torch.randn(2, 32, 5, 4, dtype=torch.float64)
    hidden = (x.mean((2, 3)) @ layer.fc1.weight.T).clamp(min=0)
    gate = torch.sigmoid(hidden @ layer.fc2.weight.T)
    torch.testing.assert_close(layer(x), x * gate[..., None, None])
    assert sum(p.numel() for p in SqueezeExcitation(256).parameters()) == 2 * 256 * 16
    assert SqueezeExcitation(256, bias=True).fc2.bias is not None


@pytest.mark.parametrize(('channels', 'kernel'),
                         [(64, 3), (256, 5), (512, 5), (1024, 5), (2048, 7)])
def test_efficient_channel_attention_kernel(channels, kernel):
    """The odd k for gamma = 2, b = 1 (ECA-Net, equation 12)."""
    assert EfficientChannelAttention(channels).conv.weight.shape == (1, 1, kernel)


def test_efficient_channel_attention():
    layer = EfficientChannelAttention(64).double()
    x = torch.randn(2, 64, 5, 4, dtype=torch.float64)
    padded = F.pad(x.mean((2, 3)), (1, 1))
    gate = torch.sigmoid((padded.unfold(1, 3, 1) * layer.conv.weight[0, 0]).sum(-1))
    torch.testing.assert_close(layer(x), x * gate[..., None, None])


def test_spatial_group_enhance():
    layer = randomise(SpatialGroupEnhance(24, groups=3)).double()
    x = torch.randn(2, 24, 5, 4, dtype=torch.float64)
    expected = torch.empty_like(x)
    for g in range(3):
        part = x[:, 8 * g:8 * g + 8]
        similarity = (part * part.mean((2, 3), keepdim=True)).sum(1, keepdim=True).flatten(1)
        z = similarity - similarity.mean(1, keepdim=True)
        z = z / (z.std(1, keepdim=True) + 1e-5)
        gate = torch.sigmoid(layer.weight[0, g] * z.view(2, 1, 5, 4) + layer.bias[0, g])
        expected[:, 8 * g:8 * g + 8] = part * gate
    torch.testing.assert_close(layer(x), expected)


def test_cbam():
    layer = CBAM(32, reduction=4, kernel_size=3).double().eval()
    x = torch.randn(2, 32, 5, 4, dtype=torch.float64)
    mean, maximum = x.mean((2, 3)), x.flatten(2).max(2).values
    y = x * torch.sigmoid(layer.mlp(mean) + layer.mlp(maximum))[..., None, None]
    conv, norm = layer.spatial
    maps = torch.stack([y.max(1).values, y.mean(1)], 1)
    z = F.conv2d(maps, conv.weight, padding=1) / (1 + norm.eps)**0.5
    torch.testing.assert_close(layer(x), y * torch.sigmoid(z))


@pytest.mark.parametrize(('layer', 'options'), SMALL)
def test_gradcheck(layer, options):
    layer = randomise(layer(8, **options)).double().eval()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = list(layer.parameters())

    def call(x, *values):
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, ))

    assert torch.autograd.gradcheck(call, (x, *parameters))


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_output_dtype_is_the_inputs(layer, dtype):
    x = torch.randn(2, 256, 6, 5).to(dtype)
    assert layer(256).to(dtype).eval()(x).dtype == dtype


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize(('dtype', 'autocast'), [
    (torch.float32, torch.bfloat16), (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)], ids=str)
def test_output_dtype_is_the_inputs_under_autocast(layer, dtype, autocast):
    x = torch.randn(2, 256, 6, 5).to(dtype)
    with torch.autocast('cpu', autocast):
        assert layer(256).eval()(x).dtype == dtype


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('shape', [(1, 256, 1, 1), (2, 256, 1, 3)], ids=str)
def test_small_planes_are_finite(layer, shape):
    layer = randomise(layer(256)).eval()
    assert layer(torch.randn(shape)).isfinite().all()


@pytest.mark.parametrize('layer', LAYERS)
def test_registered_and_named(layer):
    from mmengine.registry import MODELS as ROOT_MODELS
    assert MODELS.module_dict[layer.__name__] is layer
    assert ROOT_MODELS.get(layer.__name__) is layer
    assert hasattr(models, layer.__name__)
    assert [other._abbr_ for other in LAYERS].count(layer._abbr_) == 1


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('shape', [(256, 4, 4), (1, 1, 256, 4, 4), (1, 128, 4, 4)], ids=str)
def test_wrong_input(layer, shape):
    with pytest.raises(ValueError, match=r'expects input of shape \(N, 256, H, W\), got \('):
        layer(256)(torch.zeros(shape))


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize(('channels', 'error'), [(0, ValueError), (-64, ValueError),
                                                 (64., TypeError), (None, TypeError)])
def test_wrong_channels(layer, channels, error):
    with pytest.raises(error, match='in_channels must be'):
        layer(channels)


@pytest.mark.parametrize('layer', [ShuffleAttention, SpatialGroupEnhance])
@pytest.mark.parametrize(('groups', 'error'), [(0, ValueError), (-64, ValueError), (8., TypeError),
                                               ('8', TypeError), (True, TypeError)])
def test_wrong_groups(layer, groups, error):
    with pytest.raises(error, match=f'groups must be .*{groups}'):
        layer(256, groups=groups)


def test_channels_that_groups_do_not_divide():
    with pytest.raises(ValueError, match=r'in_channels=96 .* 2 \* groups = 128 .*'
                       r'\[1, 2, 3, 4, 6, 8, 12, 16, 24, 48\]'):
        ShuffleAttention(96)
    with pytest.raises(ValueError, match=r'in_channels=33 .* even number'):
        ShuffleAttention(33, groups=1)
    with pytest.raises(ValueError, match='in_channels=96 is not divisible by groups=64'):
        SpatialGroupEnhance(96)


@pytest.mark.parametrize(('build', 'message'), [
    (lambda: ShuffleAttention(256, fc='linear'), "fc must be one of .* got 'linear'"),
    (lambda: SqueezeExcitation(8), 'reduction=16 leaves no hidden channel of in_channels=8'),
    (lambda: CBAM(64, kernel_size=4), 'kernel_size must be odd, got 4'),
    (lambda: EfficientChannelAttention(64, gamma=0), 'gamma must be positive, got 0'),
])
def test_wrong_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(('layer', 'options'), [*SMALL, (ShuffleAttention, dict(
    groups=3, shuffle=False, fc='conv', gn=False))])
def test_gates_are_what_the_input_is_multiplied_with(layer, options):
    layer = randomise(layer(24, **options)).eval()
    x = torch.randn(2, 24, 5, 4)
    channel, spatial = layer.gates(x)
    gate = torch.ones_like(x)
    if isinstance(layer, ShuffleAttention):
        gate = gate.reshape(2, layer.groups, 2, -1, 5, 4)
        gate[:, :, 0] *= channel.reshape(2, layer.groups, -1, 1, 1)
        gate[:, :, 1] *= spatial.reshape(2, layer.groups, -1, 5, 4)
    else:
        if channel is not None:
            gate = gate * channel[:, :, None, None]
        if spatial is not None:
            gate = gate * spatial.repeat_interleave(24 // spatial.shape[1], 1)
    y = layer(x)
    if getattr(layer, 'shuffle', False):
        y = channel_shuffle(y, 12)
    torch.testing.assert_close(y, x * gate.reshape(x.shape))
    assert channel is not None or spatial is not None


@pytest.mark.parametrize(('layer', 'options'), SMALL)
def test_neutral_gates_are_constants(layer, options):
    layer = randomise(layer(24, **options)).eval()
    state, factor = layer.neutral_state()
    layer.load_state_dict(state)
    gates = [gate for gate in layer.gates(torch.randn(2, 24, 5, 4)) if gate is not None]
    assert all((gate == gate.flatten()[0]).all() for gate in gates)
    constants = [gate.flatten()[0].item() for gate in gates]
    product = constants[0] if layer._abbr_ == 'sa' else math.prod(constants)
    assert product == pytest.approx(factor)
