import pytest
from mmengine.config import ConfigDict

from sa_mmdet.dropin import families
from sa_mmdet.dropin.changes import fitting_groups
from sa_mmdet.dropin.families import check_names, describe, family_names, find_family


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A zoo with one family, whose configs the test adds as its backbone's options."""
    monkeypatch.setattr(families, 'ZOO', tmp_path)
    (tmp_path / 'family').mkdir()

    def add(name, model='ATSS', backbone='ResNet', **options):
        config = dict(type=model, backbone=dict(type=backbone, **options))
        (tmp_path / 'family' / f'{name}.py').write_text(f'model = {config!r}')

    return add


def chosen():
    return find_family('family').config


def test_shallowest_with_bottlenecks_and_shortest_name(zoo):
    zoo('r18', depth=18)
    zoo('r101', depth=101)
    zoo('atss_r50_ms-2x', depth=50)
    zoo('atss_r50_2x', depth=50)
    zoo('atss_r50_1x', depth=50)
    assert chosen() == 'family/atss_r50_1x.py'


def test_most_frequent_kind_of_backbone(zoo):
    zoo('r50', depth=50)
    dcn = dict(type='DCN')
    zoo('r50_dcn', depth=50, dcn=dcn)
    zoo('r101_dcn', depth=101, dcn=dcn)
    assert chosen() == 'family/r50_dcn.py'
    zoo('r101', depth=101)
    assert chosen() == 'family/r50.py'


def test_a_detector_before_its_proposals(zoo):
    zoo('rpn', 'RPN', depth=50)
    zoo('fast', 'FastRCNN', depth=50)
    zoo('faster-rcnn', 'FasterRCNN', depth=101)
    assert chosen() == 'family/faster-rcnn.py'


def test_none_to_try(zoo):
    zoo('yolox', 'YOLOX', 'CSPDarknet')
    zoo('swin', backbone='SwinTransformer')
    family = find_family('family')
    assert (family.config, family.backbone) == (None, 'CSPDarknet, SwinTransformer')
    assert family.routes == ()


def test_reason_where_no_config_loads(zoo, tmp_path):
    (tmp_path / 'family/x.py').write_text("custom_imports = dict(imports=['mmpretrain_x.models'])")
    assert find_family('family').backbone == 'needs mmpretrain_x'


def test_backbone_in_words():
    backbone = ConfigDict(
        type='ResNet', depth=50, style='caffe', norm_cfg=dict(type='GN'), avg_down=True,
        dcn=dict(type='DCNv2'), plugins=[dict(cfg=dict(type='ContextBlock'))])
    assert describe(backbone) == 'ResNet 50, GN, DCNv2, ContextBlock, avg_down, caffe'
    assert describe(ConfigDict(type='RegNet', arch='regnetx_4.0gf', norm_cfg=dict(type='BN'))) == (
        'RegNet regnetx_4.0gf')


@pytest.mark.parametrize(('channels', 'groups'), [
    ([256, 512, 1024, 2048], 64), ([96, 192, 432, 1008], 8), ([320], 32), ([6], 1)])
def test_groups_fit_all_stages(channels, groups):
    assert fitting_groups(channels) == groups
    assert all(width % (2 * groups) == 0 for width in channels)


def test_unknown_name():
    with pytest.raises(ValueError, match="no config family 'mask_rcn': did you mean mask_rcnn"):
        check_names(['atss', 'mask_rcn'])


def test_families_of_the_installed_zoo():
    names = family_names()
    assert 'mask_rcnn' in names
    assert '_base_' not in names
    assert find_family('dcnv2').config == 'dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py'
    assert find_family('gcnet').routes == ('plugin', 'SAResNet')
    assert find_family('tridentnet').routes == ('plugin', )
