import json

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from coco import CONFIGS
from sa_mmdet.apps.paper.runs import RESULT_KEYS, ReproduceError, select_rows
from sa_mmdet.apps.paper.weights import (
    describe_start,
    identify_backbone,
    imagenet_backbones,
)
from sa_mmdet.apps.validate.weights import checkpoint_problem, initial_weights_problem
from sa_mmdet.models import AttentionResNet, SAResNet

SA_R50 = CONFIGS / 'retinanet/retinanet_sa-r50_fpn_1x_coco.py'


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Checkpoints of two backbones, one as a classifier of MMPretrain has it."""
    folder = tmp_path_factory.mktemp('weights')
    torch.save(SAResNet(50).state_dict(), folder / 'sa.pth')
    state = AttentionResNet(50, dict(type='SqueezeExcitation', bias=True)).state_dict()
    state = {f'backbone.{key}': value for key, value in state.items()}
    torch.save(dict(state_dict=state | {'head.fc.weight': torch.ones(3)}), folder / 'se.pth')
    (folder / 'text.pth').write_text('no checkpoint')
    torch.save(dict(a=torch.ones(2)), folder / 'other.pth')
    return folder


def with_start(**init_cfg):
    config = Config.fromfile(SA_R50)
    config.model.backbone.init_cfg = dict(type='Pretrained', **init_cfg)
    return config


def test_backbones_are_found_by_their_content(weights):
    rows = select_rows([3], ['retinanet_s?-r50'])
    found = imagenet_backbones([weights / 'se.pth', weights / 'sa.pth'], rows)
    assert found == {
        (50, 'SA'): dict(init_cfg=dict(type='Pretrained', checkpoint=str(weights / 'sa.pth'))),
        (50, 'SE'): dict(
            init_cfg=dict(type='Pretrained', checkpoint=str(weights / 'se.pth'),
                          prefix='backbone.'),
            attention=dict(type='SqueezeExcitation', bias=True)),
    }
    for name in ('sa', 'se'):
        config = Config.fromfile(CONFIGS / f'retinanet/retinanet_{name}-r50_fpn_1x_coco.py')
        config.model.backbone.update(found[50, name.upper()])
        assert initial_weights_problem(config) is None
        backbone = MODELS.build(config.model.backbone)
        backbone.init_weights()
        saved = torch.load(weights / f'{name}.pth')
        saved = saved.get('state_dict', saved)
        prefix = 'backbone.' if name == 'se' else ''
        assert torch.equal(backbone.layer4[2].conv3.weight, saved[f'{prefix}layer4.2.conv3.weight'])


def test_ablations_are_not_taken_for_shuffle_attention(tmp_path):
    """All checkpoints of Tables 1 and 2 may be given: those that no row needs are passed over."""
    rows = select_rows([3], ['retinanet_sa-r50'])
    paths = {}
    for name, options in dict(
            origin={}, gn=dict(gn=False), shuffle=dict(shuffle=False), none=dict(fc='none'),
            conv=dict(fc='conv')).items():
        paths[name] = tmp_path / f'{name}.pth'
        torch.save(SAResNet(50, attention=options).state_dict(), paths[name])
    found = imagenet_backbones(list(paths.values()), rows)
    assert found == {(50, 'SA'): dict(init_cfg=dict(
        type='Pretrained', checkpoint=str(paths['origin'])))}
    kinds = {name: identify_backbone(path)[0][1] for name, path in paths.items()}
    assert kinds['shuffle'] == 'SA with unshuffled'
    assert kinds['gn'] == 'SA without gn.bias, gn.weight'
    assert len(set(kinds.values())) == 5
    with pytest.raises(ReproduceError, match=r'has no checkpoint of ResNet-50 with SA .* only of '
                                             r'ResNet-50 with SA with unshuffled'):
        imagenet_backbones([paths['shuffle']], rows)


def test_classifiers_of_a_work_dir(tmp_path, weights):
    """Those that are finished, wherever their work dir was moved to."""
    rows = select_rows([3], ['retinanet_s?-r50'])
    with pytest.raises(ReproduceError, match='has no finished run with seed 0'):
        imagenet_backbones([tmp_path], rows)
    for name in ('sa', 'se'):
        folder = tmp_path / f'{name}-resnet50/seed0'
        folder.mkdir(parents=True)
        (folder / 'epoch_100.pth').symlink_to(weights / f'{name}.pth')
        result = dict.fromkeys(RESULT_KEYS) | dict(checkpoint='/before/epoch_100.pth')
        (folder / 'result.json').write_text(json.dumps(result))
    found = imagenet_backbones([tmp_path], rows)
    assert {key: start['init_cfg']['checkpoint'] for key, start in found.items()} == {
        (50, 'SA'): str(tmp_path / 'sa-resnet50/seed0/epoch_100.pth'),
        (50, 'SE'): str(tmp_path / 'se-resnet50/seed0/epoch_100.pth')}


@pytest.mark.parametrize(('files', 'message'), [
    (['sa.pth', 'sa.pth'], 'are both of ResNet-50 with SA'),
    (['sa.pth'], 'no checkpoint of ResNet-50 with SE (for retinanet_se-r50)'),
    (['sa.pth', 'text.pth'], 'text.pth is not a PyTorch checkpoint'),
    (['other.pth'], 'begins with a: expected a checkpoint of a ResNet-50, -101 or -152'),
    (['none.pth'], 'none.pth does not exist'),
], ids=str)
def test_wrong_files(weights, files, message):
    rows = select_rows([3], ['retinanet_s?-r50'])
    with pytest.raises(ReproduceError) as error:
        imagenet_backbones([weights / name for name in files], rows)
    assert message in str(error.value)


def test_start_that_cannot_be_loaded(weights):
    other = with_start(checkpoint=str(weights / 'other.pth'))
    assert '361 missing' in initial_weights_problem(other)
    plain = with_start(checkpoint=str(weights / 'sa.pth'))
    plain.model.backbone.type = 'ResNet'
    assert 'not in the model (layer1.0.sa.' in initial_weights_problem(plain)
    assert 'gone.pth does not exist' in initial_weights_problem(with_start(checkpoint='gone.pth'))
    assert 'cannot be loaded' in initial_weights_problem(
        with_start(checkpoint=str(weights / 'text.pth')))


@pytest.mark.parametrize(('checkpoint', 'more'), [
    ('se.pth', dict(prefix='backbone')), ('se.pth', dict(prefix='backbone.')), ('~/sa.pth', {}),
], ids=['prefix', 'prefix with its dot', 'home'])
@pytest.mark.parametrize('as_list', [False, True], ids=['alone', 'in a list'])
def test_start_as_mmengine_reads_it(weights, monkeypatch, checkpoint, more, as_list):
    monkeypatch.chdir(weights)
    monkeypatch.setenv('HOME', str(weights))
    config = with_start(checkpoint=checkpoint, **more)
    if 'prefix' in more:
        attention = dict(type='SqueezeExcitation', bias=True)
        config.model.backbone.update(type='AttentionResNet', attention=attention)
    expected = MODELS.build(config.model.backbone)
    expected.init_weights()
    assert initial_weights_problem(config) is None
    if as_list:
        inits = [dict(type='Constant', val=1, layer='BatchNorm2d'), config.model.backbone.init_cfg]
        config.model.backbone.init_cfg = inits
        assert initial_weights_problem(config) is None
        inits[1].checkpoint = str(weights / 'other.pth')
        assert 'missing' in initial_weights_problem(config)


def test_torchvisions_weights_need_torchvision():
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        assert 'torchvision does not import' in initial_weights_problem(Config.fromfile(SA_R50))
    else:
        pytest.skip('torchvision imports here, so there is nothing to refuse')


def test_start_in_words(weights):
    assert describe_start(Config.fromfile(SA_R50)) == 'torchvision://resnet50, converted'
    assert describe_start(with_start(checkpoint='a.pth')) == 'a.pth'
    config = Config.fromfile(SA_R50)
    config.model.backbone.init_cfg = None
    assert describe_start(config) == 'random'


def test_checkpoint_of_another_detector(tmp_path):
    config = Config.fromfile(SA_R50)
    config.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    state = MODELS.build(config.model).state_dict()
    path = tmp_path / 'detector.pth'
    torch.save(dict(state_dict=state), path)
    config = Config.fromfile(SA_R50)
    assert checkpoint_problem(path, config) is None
    other = Config.fromfile(CONFIGS / 'retinanet/retinanet_se-r50_fpn_1x_coco.py')
    assert 'layer1.0.se.fc1.weight' in checkpoint_problem(path, other)
    plain = Config.fromfile(CONFIGS / 'retinanet/retinanet_r50_fpn_1x_coco.py')
    assert 'not in the model (backbone.layer1.0.sa.' in checkpoint_problem(path, plain)
    config.model.bbox_head.num_classes = 3
    assert 'bbox_head.retina_cls.weight' in checkpoint_problem(path, config)
    assert 'does not exist' in checkpoint_problem(tmp_path / 'gone.pth', config)
