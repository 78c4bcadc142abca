"""channels_last=True: another layout inside a backbone, the same numbers, nothing seen outside."""
import copy
from itertools import chain

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign
from mmdet.models.backbones import ResNet

from networks import image, randomised, retinanet
from sa_mmdet.models import SAResNet, in_channels_last

PLUGIN = dict(cfg=dict(type='ShuffleAttention'), position='after_conv3')


def is_channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def run(backbone, dtype=torch.float32):
    """Features, and the gradients of what trains; the layouts of conv3's results."""
    layouts = []
    for name, module in backbone.named_modules():
        if name.endswith('conv3'):
            module.register_forward_hook(
                lambda _, inputs, out: layouts.append(is_channels_last(out)))
    backbone.train()
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        features = backbone(image(size=96))
    sum(y.float().square().mean() for y in features).backward()
    gradients = [parameter.grad for parameter in backbone.parameters() if parameter.requires_grad]
    return features, gradients, layouts


def assert_near(values, expected, error):
    """Few elements differ by more than roundings: behind a ReLU that decides otherwise."""
    for value, of in zip(values, expected, strict=True):
        assert (value - of).norm() <= error * of.norm() + 1e-6


@pytest.mark.parametrize('build', [
    lambda **options: SAResNet(50, frozen_stages=1, norm_eval=True, **options),
    lambda **options: SAResNet(50, norm_eval=True, with_cp=True, **options),
    lambda **options: SAResNet(50, deep_stem=True, avg_down=True, norm_eval=True, **options),
], ids=['fused', 'with_cp', 'deep stem'])
def test_features_and_gradients_are_those_of_contiguous(build):
    plain, changed = randomised(build()), build(channels_last=True)
    changed.load_state_dict(plain.state_dict())
    features, gradients, layouts = run(plain)
    assert not any(layouts)
    changed_features, changed_gradients, layouts = run(changed)
    assert len(layouts) >= 16
    assert all(layouts)
    assert all(feature.is_contiguous() for feature in changed_features)
    assert_near(changed_features, features, 1e-3)
    assert_near(changed_gradients, gradients, 0.05)


def test_mixed_precision_differs_by_rounding_alone():
    plain, changed = randomised(SAResNet(50)), SAResNet(50, channels_last=True)
    changed.load_state_dict(plain.state_dict())
    features, _, _ = run(plain, torch.bfloat16)
    changed_features, _, layouts = run(changed, torch.bfloat16)
    assert all(layouts)
    assert {feature.dtype for feature in (*changed_features, *features)} == {torch.bfloat16}
    assert_near(changed_features, features, 0.05)


@pytest.mark.parametrize('plugins', [None, [PLUGIN]], ids=['ResNet', 'plugin'])
def test_any_backbone_can_be(plugins):
    plain = randomised(ResNet(50, plugins=plugins, norm_eval=True))
    changed = copy.deepcopy(plain)
    in_channels_last(changed)
    features, _, _ = run(plain)
    changed_features, _, layouts = run(copy.deepcopy(changed))
    assert all(layouts)
    assert_near(changed_features, features, 1e-3)


def test_a_detector_has_one_line_of_config():
    plain = retinanet(type='SAResNet', attention=dict(groups=16))
    changed = retinanet(type='SAResNet', attention=dict(groups=16), channels_last=True)
    assert is_channels_last(changed.backbone.layer2[0].conv2.weight)
    assert changed.bbox_head.retina_cls.weight.is_contiguous()
    with torch.no_grad():
        assert_near(chain(*changed(image(), mode='tensor')), chain(*plain(image(), mode='tensor')),
                    1e-3)


def test_a_backbone_may_return_one_map():
    convolution = torch.nn.Conv2d(4, 8, 3)
    in_channels_last(convolution)
    assert is_channels_last(convolution.weight)
    assert convolution(torch.randn(2, 4, 5, 5)).shape == (2, 8, 3, 3)
    assert convolution(torch.randn(2, 4, 5, 5)).is_contiguous()


def test_gradients_have_the_strides_of_parameters():
    """Else DistributedDataParallel copies them, and warns."""
    backbone = randomised(SAResNet(50, channels_last=True))
    run(backbone)
    for name, parameter in backbone.named_parameters():
        if parameter.grad is not None and parameter.shape[2:] != (1, 1):
            assert parameter.grad.stride() == parameter.stride(), name
        if '.sa.' in name:
            assert parameter.is_contiguous()


def test_mmcvs_operators_are_the_reason():
    """Whoever finds this fail: mmcv takes channels_last now, and the features can stay so."""
    features = torch.randn(1, 8, 16, 16)
    rois = torch.tensor([[0., 1, 1, 9, 12]])
    align = RoIAlign((7, 7), 1.0, 0)
    wrong = align(features.contiguous(memory_format=torch.channels_last), rois)
    assert (wrong - align(features, rois)).abs().max() > 0.1


def test_deformable_convolutions_are_refused():
    dcn = dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True))
    with pytest.raises(ValueError, match=r'layer2\.0\.conv2, a ModulatedDeformConv2dPack.*or dcn'):
        SAResNet(50, channels_last=True, **dcn)
    class Subclass(ModulatedDeformConv2dPack):
        pass

    with pytest.raises(ValueError, match='a Subclass'):
        in_channels_last(torch.nn.Sequential(Subclass(8, 8, 3)))
    SAResNet(50, channels_last=True, **{**dcn, 'stage_with_dcn': (False, ) * 4})
    with pytest.raises(TypeError, match='channels_last must be'):
        SAResNet(50, channels_last='yes')
