"""Frozen batch norms folded into convolutions, for one call."""
import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from torch import nn

from networks import assert_same_outputs, image, randomised
from sa_mmdet.apps.speed.measure import peak_memory
from sa_mmdet.models import SAResNet
from sa_mmdet.models.backbones import folding
from sa_mmdet.ops import implementations
from sa_mmdet.ops.dispatch import route

pytestmark = pytest.mark.skipif(
    implementations()['cpu'] is not None, reason=f'no C++ operator: {implementations()["cpu"]}')


def layers(**options):
    """A convolution and a frozen batch norm."""
    options = dict(kernel_size=3, padding=1, bias=False) | options
    return randomised(nn.Sequential(nn.Conv2d(8, 16, **options), nn.BatchNorm2d(16)))


def features(size=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 8, size, size, generator=generator, dtype=dtype)


def conv_norm(conv, norm, x):
    return folding.conv_norm(conv, norm, x, route(x))


def folds(conv, norm, x) -> bool:
    """Whether the norm was not asked."""
    chosen = route(x.as_subclass(torch.Tensor))  # which is tried out at first, with batch norms
    asked, batch_norm = [], torch.nn.functional.batch_norm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, 'batch_norm',
                      lambda *args, **options: asked.append(1) or batch_norm(*args, **options))
        folding.conv_norm(conv, norm, x, chosen)
    return not asked


def gradients(function, x, parameters):
    x = x.clone().requires_grad_()
    y = function(x)
    return y, *torch.autograd.grad(y.square().sum(), (x, *parameters))


@pytest.mark.parametrize('options', [
    {}, dict(stride=2), dict(dilation=2, padding=2), dict(groups=4), dict(kernel_size=1, padding=0),
], ids=str)
def test_equals_convolution_and_norm(options):
    """Output and all gradients in float64; the parameters stay what they are."""
    conv, norm = model = layers(**options).double()
    x = features(dtype=torch.float64)
    before = [value.clone() for value in model.state_dict().values()]
    assert folds(conv, norm, x)
    parameters = list(model.parameters())
    actual = gradients(lambda x: conv_norm(conv, norm, x), x, parameters)
    for a, e in zip(actual, gradients(model, x, parameters), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-9 * e.abs().max().item())
    assert_same_outputs(before, list(model.state_dict().values()), rtol=0, atol=0)


@pytest.mark.parametrize('synchronise', [
    nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm,
    lambda model: revert_sync_batchnorm(convert_sync_batchnorm(model)),
], ids=['torch', 'mmengine', 'reverted'])
def test_synchronised_batch_norms(synchronise):
    """Frozen, they compute what ``BatchNorm2d`` does; with batch statistics they are called."""
    model, x = layers().double(), features(dtype=torch.float64)
    expected = model(x)
    conv, norm = synchronise(model).eval()
    assert type(norm) is not nn.BatchNorm2d
    assert folds(conv, norm, x)
    torch.testing.assert_close(conv_norm(conv, norm, x), expected)
    norm.train()
    assert not folds(conv, norm, x)


def test_only_where_the_result_is_larger_than_the_weight():
    conv, norm = layers()
    assert folds(conv, norm, features(6))  # 2 * 6 * 6 = 72 pixels, 8 * 3 * 3 = 72 weights a channel
    assert not folds(conv, norm, features(5))


@pytest.mark.parametrize('change', [
    lambda conv, norm: norm.train(),
    lambda conv, norm: norm.register_forward_hook(lambda *args: None),
    lambda conv, norm: conv.register_forward_pre_hook(lambda *args: None),
    lambda conv, norm: nn.utils.parametrizations.weight_norm(conv),
    lambda conv, norm: setattr(conv, 'bias', nn.Parameter(torch.zeros(16))),
    lambda conv, norm: setattr(conv, 'padding_mode', 'reflect'),
    lambda conv, norm: norm.register_parameter('bias', None),
], ids=['batch statistics', 'hook', 'pre-hook', 'parametrised', 'bias', 'padding mode', 'no shift'])
def test_not_where_something_else_would_come_out(change):
    conv, norm = layers()
    assert folds(conv, norm, features())
    change(conv, norm)
    assert not folds(conv, norm, features())


def test_full_precision_only():
    with torch.autocast('cpu', torch.bfloat16):
        assert not folds(*layers(), features())
    assert not folds(*layers().bfloat16(), features(dtype=torch.bfloat16))


class OnGPU(torch.Tensor):
    """Says that it is there."""

    is_cuda = True


def test_on_a_gpu_only_for_a_convolution_that_learns():
    conv, norm = layers()
    x = features().as_subclass(OnGPU)
    assert folds(conv, norm, x)
    with torch.no_grad():
        assert folds(conv, norm, features())
        assert not folds(conv, norm, x)
    conv.weight.requires_grad_(False)
    assert not folds(conv, norm, x)
    assert folds(conv, norm, features())


def test_formula_is_the_plain_sequence(force_ops):
    force_ops('reference')
    assert not folds(*layers(), features())


def test_network_equals_the_plain_sequence(force_ops):
    """A whole network in training, folded where it pays: outputs and gradients."""
    network = randomised(SAResNet(50, num_stages=2, strides=(1, 2), dilations=(1, 1),
                                  out_indices=(0, 1))).double().train()
    parameters = list(network.parameters())
    x = image(160, torch.float64)

    def outputs_and_gradients():
        outputs = network(x)
        loss = sum(output.square().mean() for output in outputs)
        return *outputs, *torch.autograd.grad(loss, parameters)

    actual = outputs_and_gradients()
    force_ops('reference')
    for a, e in zip(actual, outputs_and_gradients(), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-9 * e.abs().max().item())


@pytest.mark.parametrize('train', [False, True], ids=['inference', 'training'])
def test_needs_no_more_memory_than_resnet(train):
    """As MMDetection trains: the stem and the first stage frozen, statistics frozen."""
    x, peaks = image(224), []

    def run(network):
        with torch.set_grad_enabled(train):
            outputs = network(x)
        if train:
            sum(output.sum() for output in outputs[1:]).backward()
            network.zero_grad(set_to_none=True)
        return outputs

    for backbone in (ResNet, SAResNet):
        network = backbone(50, frozen_stages=1, norm_eval=True)
        network.train(train)
        run(network)
        peaks.append(peak_memory(lambda network=network: run(network), x.device))
    plain, attention = peaks
    assert attention <= plain
