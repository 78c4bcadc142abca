"""FeatureAttention: the identity at first, then attention."""
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from networks import LAYERS, randomised, small
from sa_mmdet.models import FeatureAttention, ShuffleAttention, SpatialGroupEnhance

CHANNELS = [16, 32, 48]
SIZES = (5, 7), (3, 1), (1, 1)


def maps_of(channels, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, c, *size, generator=generator).to(dtype).requires_grad_()
                 for c, size in zip(channels, SIZES, strict=True))


def config_of(layer, **options):
    return dict(type=layer.__name__, **small(layer, kernel_size=3), **options)


def shuffle(channels=CHANNELS, **options):
    return FeatureAttention(dict(type='ShuffleAttention', groups=2), channels, **options)


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('channels', [CHANNELS, [16] * 3, 16], ids=['different', 'equal', 'shared'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_is_the_identity_until_it_has_learned(layer, channels, dtype):
    """To rounding, and to the bit where the neutral gate is a power of two."""
    module = FeatureAttention(config_of(layer), channels).to(dtype)
    maps = maps_of([16] * 3 if channels == 16 else channels, dtype)
    exact = layer not in (ShuffleAttention, SpatialGroupEnhance)
    for x, y in zip(maps, module(maps), strict=True):
        assert y.dtype == dtype
        assert (y - x).abs().le(0 if exact else 2 * torch.finfo(dtype).eps * x.abs()).all()

    optimizer = torch.optim.SGD(module.parameters(), lr=1.)
    loss = sum((y * x.cos()).sum() for x, y in zip(maps, module(maps), strict=True))
    loss.backward()
    optimizer.step()
    for x, y in zip(maps, module(maps), strict=True):
        assert (y - x).abs().max() > 1e-3


@pytest.mark.parametrize('layer', LAYERS)
def test_gradients(layer):
    module = randomised(FeatureAttention(config_of(layer), CHANNELS).double())
    inputs = *maps_of(CHANNELS, torch.float64), *module.parameters()
    assert torch.autograd.gradcheck(lambda *tensors: module(tensors[:3]), inputs)


@pytest.mark.parametrize('layer', LAYERS)
def test_every_parameter_learns(layer):
    """From the second step on also those that stand before a zero at first."""
    module = FeatureAttention(config_of(layer), CHANNELS)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum((y * x.cos()).sum() for x, y in zip(maps_of(CHANNELS), module(maps_of(CHANNELS)),
                                                strict=True)).backward()
        optimizer.step()
    # the last map has one position, which has no deviation from its mean
    assert all(parameter.grad.any() for parameter in module.layers[:2].parameters())


@pytest.mark.parametrize('layer', LAYERS)
def test_gates_channels_where_they_stand(layer):
    """Of each channel what the layer makes of it alone, less the neutral gate."""
    module = randomised(FeatureAttention(config_of(layer), CHANNELS))
    for x, y, inner in zip(maps_of(CHANNELS), module(maps_of(CHANNELS)), module.layers,
                           strict=True):
        expected = inner(x)[:, inner.source_channels()] / inner.neutral_state()[1]
        torch.testing.assert_close(y, expected)
        gates = (y / x).detach()
        assert gates.min() >= 0
        assert gates.max() <= 1.0001 / inner.neutral_state()[1]


def test_levels_are_attended_to_and_others_passed_on():
    maps = maps_of(CHANNELS)
    module = randomised(shuffle(levels=[2, 0]))
    assert [layer.in_channels for layer in module.layers] == [16, 48]
    outputs = module(list(maps))
    assert isinstance(outputs, tuple)
    assert outputs[1] is maps[1]
    assert module.layer_of(1) is None
    assert module.layer_of(2) is module.layers[1]


@pytest.mark.parametrize('options', [dict(channels=16), dict(channels=[16] * 3, shared=True),
                                     dict(channels=[16, 32, 16], levels=[0, 2], shared=True)])
def test_one_layer_for_all(options):
    module = shuffle(**options)
    assert len(module.layers) == 1
    channels = options['channels']
    maps = maps_of([16] * 3 if channels == 16 else channels)
    assert [y.shape for y in module(maps)] == [x.shape for x in maps]
    assert module.layer_of(0) is module.layer_of(2)


def test_init_weights_of_a_model_leaves_it_neutral():
    """Also where the model's init_cfg is for the kind of the attention's layers."""
    init_default_scope('mmdet')
    neck = MODELS.build([dict(type='FeatureAttention', in_channels=CHANNELS, attention='CBAM')])
    neck.init_cfg = dict(type='Normal', layer=['Linear', 'BatchNorm2d'], std=1.)
    neck.init_weights()
    maps = maps_of(CHANNELS)
    assert neck[0].layers[0].mlp[0].weight.std() > 0.5
    assert all(torch.equal(x, y) for x, y in zip(maps, neck[0](maps), strict=True))
    trained = randomised(neck[0])(maps)
    neck[0].init_weights()  # which MMEngine warns of, and leaves out
    assert all(torch.equal(x, y) for x, y in zip(trained, neck[0](maps), strict=True))


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('amp', [False, True])
def test_layout_and_dtype_are_kept(memory_format, amp):
    module = shuffle()
    maps = [x.detach().to(torch.bfloat16 if amp else torch.float32, memory_format=memory_format)
            for x in maps_of(CHANNELS)]
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        for x, y in zip(maps, module(maps), strict=True):
            assert y.dtype == x.dtype
            assert y.is_contiguous(memory_format=memory_format)


def test_compiles_whole():
    module = randomised(shuffle())
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    for x, y in zip(module(maps_of(CHANNELS)), compiled(maps_of(CHANNELS)), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(('arguments', 'error', 'message'), [
    (dict(attention='ShuffelAttention'), ValueError, "unknown attention type 'ShuffelAttention'"),
    (dict(attention=dict(type='CBAM', groups=2)), TypeError, "CBAM.*unexpected keyword .*'groups'"),
    (dict(attention=dict(type='ShuffleAttention', fc='none')), ValueError,
     "cannot be the identity: with fc='none' the gates .* Use another"),
    (dict(attention=dict(type='ContextBlock', ratio=1 / 16)), ValueError,
     'ContextBlock has no neutral parameters'),
    (dict(in_channels=96), ValueError, r"in_channels=96 .* use one of groups=\[.*48\], or 'auto'"),
    (dict(attention=dict(type='ShuffleAttention', groups='Auto')), TypeError,
     "groups must be an integer, or 'auto', got 'Auto'"),
    (dict(in_channels='256'), TypeError, "in_channels must be an integer, got '256'"),
    (dict(in_channels=[]), ValueError, r'in_channels .* got \[\]'),
    (dict(in_channels=[256, 0]), ValueError, 'in_channels must be at least 1, got 0'),
    (dict(levels=2), TypeError, 'levels must be a list .* got 2'),
    (dict(levels=[]), ValueError, r'levels must be .* got \[\]'),
    (dict(levels=[1, 1]), ValueError, r'levels must be different .* got \[1, 1\]'),
    (dict(levels=[-1]), ValueError, r'from 0, got \[-1\]'),
    (dict(levels=[2], in_channels=[256, 256]), ValueError, r'from 0 to 1, got \[2\]'),
    (dict(shared='yes'), TypeError, "shared must be True or False, got 'yes'"),
    (dict(shared=True, in_channels=[256, 512]), ValueError, r'equal channels, got \[256, 512\]'),
])
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        FeatureAttention(**arguments)


@pytest.mark.parametrize(('options', 'given', 'message'), [
    (dict(channels=CHANNELS), CHANNELS[:2], r'in_channels=\[16, 32, 48\], .* 2 maps of \[16, 32\]'),
    (dict(channels=CHANNELS), [16, 16, 48], r'3 maps of \[16, 16, 48\] channels'),
    (dict(channels=16), CHANNELS, r'in_channels=16, .* \[16, 32, 48\] channels'),
    (dict(channels=16, levels=[3]), [16, 16, 16], r'levels=\[3\], .* 3 maps'),
])
def test_other_maps(options, given, message):
    maps = [torch.zeros(1, channels, 2, 2) for channels in given]
    with pytest.raises(ValueError, match=message):
        shuffle(**options)(maps)


def test_no_maps():
    with pytest.raises(ValueError, match=r'but got 0 maps'):
        shuffle()(())
    with pytest.raises(TypeError, match=r'takes a tuple of maps.* got Tensor'):
        shuffle()(torch.zeros(3, 16, 2, 2))
    with pytest.raises(TypeError, match=r'floating-point tensor, got torch\.int64'):
        shuffle(channels=16)([torch.zeros(1, 16, 2, 2, dtype=torch.int64)])
