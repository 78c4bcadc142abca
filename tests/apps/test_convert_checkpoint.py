"""tools/convert_checkpoint.py as a command."""
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.models.backbones import ResNet, ResNeXt
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope

from networks import image, randomised
from sa_mmdet.models import SAResNet

ROOT = Path(__file__).parents[2]
SA = ROOT / 'configs/retinanet/retinanet_sa-r50_fpn_1x_coco.py'
PLAIN = ROOT / 'configs/retinanet/retinanet_r50_fpn_1x_coco.py'


@pytest.fixture
def convert(monkeypatch):
    """Run the tool in this process: raises SystemExit with its message."""

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, args)])
        runpy.run_path(str(ROOT / 'tools/convert_checkpoint.py'), run_name='__main__')

    return run


@pytest.fixture
def converted(convert, capsys):
    """Run the tool: what it printed, and the checkpoint that it wrote."""

    def run(*args):
        convert(*args)
        return capsys.readouterr().out, torch.load(args[2], weights_only=True)

    return run


@pytest.fixture(scope='module')
def resnet():
    return randomised(ResNet(50))


def assert_backbone(state, plain):
    model = SAResNet(50, convert_weights=False)
    model.load_state_dict(state, strict=True)
    model.eval()
    with torch.no_grad():
        for x, y in zip(plain(image()), model(image()), strict=True):
            assert (x - y).abs().max() < 1e-5 * x.abs().max()


@pytest.mark.parametrize(('prefix', 'others'), [
    ('', ['fc.weight', 'fc.bias']), ('backbone.', ['head.fc.weight']),
    ('module.', ['module.fc.weight']),
], ids=['torchvision', 'mmpretrain', 'module'])
def test_plain_classifiers(tmp_path, resnet, converted, prefix, others):
    state = {prefix + key: value for key, value in resnet.state_dict().items()}
    state.update({key: torch.zeros(3) for key in others})
    source = tmp_path / 'a.pth'
    torch.save(dict(state_dict=state) if prefix else state, source)
    output, checkpoint = converted(SA, source, tmp_path / 'b.pth', '--verify')
    assert output.count('largest difference') == 4
    assert_backbone(checkpoint['state_dict'], resnet)
    assert checkpoint['meta']['converted_from'] == str(source)
    assert checkpoint['meta']['bottlenecks_converted'] == 16
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'b.pth']


def test_a_backbone_in_channels_last(tmp_path, resnet, converted):
    config = tmp_path / 'mine.py'
    config.write_text(f"_base_ = '{SA}'\nmodel = dict(backbone=dict(channels_last=True))\n")
    torch.save(resnet.state_dict(), tmp_path / 'a.pth')
    output, checkpoint = converted(config, tmp_path / 'a.pth', tmp_path / 'b.pth', '--verify')
    assert output.count('largest difference') == 4
    assert_backbone(checkpoint['state_dict'], resnet)


def test_authors_classifier_keeps_its_attention(tmp_path, converted):
    model = randomised(SAResNet(50))
    state = {f'module.{key}': value for key, value in model.state_dict().items()}
    torch.save(dict(state_dict=state | {'module.fc.weight': torch.zeros(3)}, epoch=100),
               tmp_path / 'a.pth')
    _, checkpoint = converted(SA, tmp_path / 'a.pth', tmp_path / 'b.pth', '--verify')
    assert checkpoint['state_dict'].keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(checkpoint['state_dict'][key], value)


def test_classifier_for_a_detector_without_attention(tmp_path, resnet, converted):
    """It is renamed; one with attention is refused."""
    state = {f'backbone.{key}': value for key, value in resnet.state_dict().items()}
    torch.save(dict(state_dict=state | {'head.fc.weight': torch.zeros(3)}), tmp_path / 'a.pth')
    output, checkpoint = converted(PLAIN, tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert "the config's network has no attention: the weights keep their values" in output
    assert checkpoint['state_dict'].keys() == resnet.state_dict().keys()
    for key, value in resnet.state_dict().items():
        assert torch.equal(checkpoint['state_dict'][key], value)

    torch.save(SAResNet(50).state_dict(), tmp_path / 'sa.pth')
    with pytest.raises(SystemExit, match=r'96 not in the model \(layer1\.0\.sa\.'):
        converted(PLAIN, tmp_path / 'sa.pth', tmp_path / 'c.pth')


def test_whole_detector_drops_the_optimizer(tmp_path, converted):
    init_default_scope('mmdet')
    cfg = Config.fromfile(PLAIN).model
    cfg.backbone.init_cfg = None
    plain = MODELS.build(cfg)
    plain.backbone = randomised(plain.backbone)
    history = HistoryBuffer(np.arange(3.), np.ones(3))
    torch.save(dict(meta=dict(dataset_meta=dict(classes=('a', ))), state_dict=plain.state_dict(),
                    optimizer=dict(state={}), message_hub=dict(log_scalars=dict(loss=history))),
               tmp_path / 'a.pth')
    output, checkpoint = converted(SA, tmp_path / 'a.pth', tmp_path / 'b.pth', '--verify')
    assert 'not copied, as a new training starts without them: optimizer, message_hub' in output
    assert checkpoint.keys() == {'meta', 'state_dict'}
    assert checkpoint['meta']['dataset_meta'] == dict(classes=('a', ))
    state = checkpoint['state_dict']
    assert torch.equal(state['neck.lateral_convs.0.conv.weight'],
                       plain.neck.lateral_convs[0].conv.weight)
    assert_backbone({key.removeprefix('backbone.'): value for key, value in state.items()
                     if key.startswith('backbone.')}, plain.backbone)
    again, _ = converted(SA, tmp_path / 'b.pth', tmp_path / 'c.pth')
    assert 'already has attention' in again


def test_detector_of_other_classes(tmp_path, convert, converted):
    """The refusal names the options by which it is converted."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(PLAIN).model
    cfg.backbone.init_cfg, cfg.bbox_head.num_classes = None, 2
    torch.save(dict(meta=dict(dataset_meta=dict(classes=('a', 'b'))),
                    state_dict=MODELS.build(cfg).state_dict()), tmp_path / 'a.pth')
    with pytest.raises(SystemExit) as refusal:
        convert(SA, tmp_path / 'a.pth', tmp_path / 'b.pth')
    options = '--cfg-options model.bbox_head.num_classes=2'
    assert f'convert it with that number: {options}.' in refusal.value.code
    output, _ = converted(SA, tmp_path / 'a.pth', tmp_path / 'b.pth', *options.split())
    assert '16 bottlenecks converted' in output


def test_attention_that_cannot_be_neutral(tmp_path, resnet, convert):
    torch.save(resnet.state_dict(), tmp_path / 'a.pth')
    with pytest.raises(SystemExit, match=r"^error: .*\.sa cannot be .* fc='none' the gates"):
        convert(SA, tmp_path / 'a.pth', tmp_path / 'b.pth', '--cfg-options',
                'model.backbone.attention.fc=none')
    assert not (tmp_path / 'b.pth').exists()


def test_plugin_of_resnext(tmp_path, converted):
    plain = randomised(ResNeXt(depth=50, groups=32, base_width=4))
    (tmp_path / 'config.py').write_text(f'''
_base_ = {str(PLAIN)!r}
plugin = dict(cfg=dict(type='ShuffleAttention'), position='after_conv3')
model = dict(backbone=dict(type='ResNeXt', groups=32, base_width=4, plugins=[plugin]))
''')
    torch.save(plain.state_dict(), tmp_path / 'a.pth')
    output, checkpoint = converted(tmp_path / 'config.py', tmp_path / 'a.pth', tmp_path / 'b.pth',
                                   '--verify')
    assert output.count('largest difference') == 4
    assert 'layer3.4.sa.cbias' in checkpoint['state_dict']


@pytest.fixture(scope='module')
def retinanet(tmp_path_factory):
    """A file of the weights of the plain detector."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(PLAIN).model
    cfg.backbone.init_cfg = None
    path = tmp_path_factory.mktemp('retinanet') / 'plain.pth'
    torch.save(dict(state_dict=randomised(MODELS.build(cfg)).state_dict()), path)
    return path


NECK = '{{_base_.model.neck}}'
BEHIND = f"[{NECK}, dict(type='FeatureAttention', in_channels=[256] * 5)]"
BEFORE = f"[dict(type='FeatureAttention', in_channels=[256, 512, 1024, 2048]), {NECK}]"


def write_config(path, base, necks):
    path.write_text(f'_base_ = {str(base)!r}\nmodel = dict(neck={necks})\n')
    return path


@pytest.mark.parametrize(('base', 'necks', 'place'), [
    (PLAIN, BEHIND, 0), (PLAIN, BEFORE, 1), (SA, BEHIND, 0)], ids=['behind', 'before', 'SAResNet'])
def test_feature_attention(tmp_path, retinanet, convert, converted, base, necks, place):
    config = write_config(tmp_path / 'config.py', base, necks)
    output, checkpoint = converted(config, retinanet, tmp_path / 'a.pth', '--verify')
    assert 'FeatureAttention inserted: it starts as the identity' in output
    assert ('16 bottlenecks converted' in output) == (base is SA)
    assert output.count('largest difference') == 5
    plain = torch.load(retinanet, weights_only=True)['state_dict']
    name = 'lateral_convs.0.conv.weight'
    assert torch.equal(checkpoint['state_dict'][f'neck.{place}.{name}'], plain[f'neck.{name}'])
    output, _ = converted(config, tmp_path / 'a.pth', tmp_path / 'b.pth', '--verify')
    assert 'already has attention' in output

    other = write_config(tmp_path / 'other.py', base, BEHIND if necks is BEFORE else BEFORE)
    with pytest.raises(SystemExit, match=r'^error: the checkpoint has neck\.\d\.layers.* give the '
                       r'config that it was trained with'):
        convert(other, tmp_path / 'a.pth', tmp_path / 'c.pth')
    assert not (tmp_path / 'c.pth').exists()


def test_deploy(tmp_path, resnet, retinanet, convert, converted):
    """Of a backbone and of a detector, for configs with deploy=True."""
    source = tmp_path / 'plain.pth'
    torch.save(resnet.state_dict(), source)
    output, checkpoint = converted(SA, source, tmp_path / 'a.pth', '--deploy', '--verify')
    assert '16 bottlenecks converted' in output
    assert '16 bottlenecks deployed: set model.backbone.deploy=True' in output
    assert output.count('largest difference') == 8
    assert checkpoint['meta']['deployed']
    model = SAResNet(50, deploy=True)
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    with torch.no_grad():
        for x, y in zip(resnet(image()), model(image()), strict=True):
            assert (x - y).abs().max() < 1e-5 * x.abs().max()
    deploy = '--cfg-options', 'model.backbone.deploy=True'
    output, checkpoint = converted(SA, retinanet, tmp_path / 'b.pth', '--deploy', *deploy)
    assert 'backbone.layer1.0.conv3.slope' in checkpoint['state_dict']
    assert 'bbox_head.retina_cls.weight' in checkpoint['state_dict']
    with pytest.raises(SystemExit, match=r"sa has fc='conv'.*Leave out --deploy"):
        convert(SA, source, tmp_path / 'c.pth', '--deploy', '--cfg-options',
                'model.backbone.attention.fc=conv')
    assert not (tmp_path / 'c.pth').exists()
    with pytest.raises(SystemExit, match=r'deploy=True of SAResNet .* Leave it out'):
        convert(PLAIN, source, tmp_path / 'c.pth', '--deploy')


@pytest.mark.parametrize(('write', 'message'), [
    (lambda path, state: None, 'a.pth does not exist'),
    (lambda path, state: torch.save(ResNet(101).state_dict(), path),
     '306 not in the model (layer3.6.conv1.weight'),
    (lambda path, state: torch.save(ResNet(18).state_dict(), path),
     '23 of another shape or type (layer1.0.conv1.weight'),
    (lambda path, state: torch.save(
        {k: v for k, v in state.items() if k != 'layer1.0.conv1.weight'}, path),
     '1 missing (layer1.0.conv1.weight)'),
], ids=['no file', 'deeper', 'shallower', 'incomplete'])
def test_bad_checkpoints(tmp_path, resnet, convert, write, message):
    write(tmp_path / 'a.pth', dict(resnet.state_dict()))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(SystemExit) as exit_:
        convert(SA, tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert exit_.value.code.startswith('error: ')
    assert message in exit_.value.code
    assert '\n' not in exit_.value.code
    assert sorted(os.listdir(tmp_path)) == before


def test_code_in_a_checkpoint(tmp_path, attack, convert):
    with pytest.raises(SystemExit, match=r'holds more than weights \(posix\.mkdir\)'):
        convert(SA, attack, tmp_path / 'b.pth')
    assert os.listdir(tmp_path) == [attack.name]
