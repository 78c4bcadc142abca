"""What fits a model is loaded; what does not is told in a sentence."""
import pytest
import torch
from mmdet.models.backbones import ResNet

from sa_mmdet.apps.validate.weights import mismatch
from sa_mmdet.models import AttentionResNet, SAResNet

SMALL = dict(base_channels=16, attention=dict(groups=4))


@pytest.fixture(scope='module')
def plain():
    return ResNet(50, base_channels=16).state_dict()


@pytest.fixture(scope='module')
def own():
    return SAResNet(50, **SMALL).state_dict()


@pytest.mark.parametrize('change', [
    lambda state: state,
    lambda state: {key: value.half() if value.is_floating_point() else value
                   for key, value in state.items()},
    lambda state: {key: value.float() for key, value in state.items()},
    lambda state: {key: value for key, value in state.items() if 'num_batches' not in key},
], ids=['as saved', 'half precision', 'averaged, all in floating point', 'of old PyTorch'])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_what_fits(change, device, plain, own):
    for state in (plain, own):
        with torch.device(device):
            model = SAResNet(50, **SMALL)
        assert mismatch(model, change(state)) is None


@pytest.mark.parametrize(('change', 'part'), [
    (lambda state: state | {'conv1.weight': torch.zeros(3)},
     '1 of another shape or type (conv1.weight torch.float32 (3,) instead of'),
    (lambda state: {key: value for key, value in state.items() if key != 'bn1.weight'},
     '1 missing (bn1.weight)'),
    (lambda state: state | {'fc.bias': torch.zeros(3)}, '1 not in the model (fc.bias)'),
    (lambda state: AttentionResNet(50, 'SqueezeExcitation', base_channels=16).state_dict(),
     'layer1.0.se.fc1.weight'),
], ids=['shape', 'missing', 'unexpected', 'another attention'])
def test_what_does_not_fit(change, part, plain):
    told = mismatch(SAResNet(50, **SMALL), change(plain))
    assert part in told
    assert '.sa.' not in told  # which the conversion brings
