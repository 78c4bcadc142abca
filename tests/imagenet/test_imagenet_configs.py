"""Every row of Tables 1 and 2 has its config, with the paper's recipe."""
import pytest
from mmengine.config import Config

from image_folder import CONFIGS
from sa_mmdet.apps.paper.complexity_table import classifier_backbone
from sa_mmdet.apps.paper.tables import load_table

ROWS = {row.name: row for table in (1, 2) for row in load_table(table)}


def read(row) -> Config:
    return Config(_without_scope(Config.fromfile(CONFIGS / row.config).to_dict()))


def _without_scope(node):
    """What MMEngine adds to configs of another package is left out."""
    if isinstance(node, dict):
        return {key: _without_scope(value) for key, value in node.items() if key != '_scope_'}
    return [_without_scope(item) for item in node] if isinstance(node, list) else node


@pytest.fixture(autouse=True)
def _mmpretrain():
    """Its configs are read, itself is not imported."""
    from importlib.util import find_spec
    if not find_spec('mmpretrain'):
        pytest.skip('MMPretrain is not installed, on whose configs these stand')


def test_every_config_is_a_row():
    assert len(ROWS) == 16
    assert {path.name for path in (CONFIGS / 'imagenet').glob('*.py')} == {
        row.config.name for row in ROWS.values()}


@pytest.mark.parametrize('row', ROWS.values(), ids=lambda row: row.name)
def test_recipe_is_the_papers(row):
    config = read(row)
    assert config.default_scope == 'mmpretrain'
    assert config.custom_imports.imports == ['sa_mmdet']
    assert config.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == 256
    assert config.param_scheduler == dict(
        type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1)
    assert config.train_cfg.max_epochs == 100
    crop, flip = config.train_dataloader.dataset.pipeline[1:3]
    assert crop == dict(type='RandomResizedCrop', scale=224)
    assert flip == dict(type='RandomFlip', prob=0.5, direction='horizontal')
    resize, crop = config.val_dataloader.dataset.pipeline[1:3]
    assert resize == dict(type='ResizeEdge', scale=256, edge='short')
    assert crop == dict(type='CenterCrop', crop_size=224)
    assert config.test_dataloader == config.val_dataloader
    assert config.model.head.type == 'LinearClsHead'
    assert (config.model.head.num_classes, config.model.head.in_channels) == (1000, 2048)
    assert config.default_hooks.checkpoint.type == 'mmdet.AtomicCheckpointHook'


@pytest.mark.parametrize('row', ROWS.values(), ids=lambda row: row.name)
def test_backbone_is_the_one_that_is_counted(row):
    """As ``tools/complexity.py --table 1 2`` has it, with the last stage's features alone."""
    backbone = read(row).model.backbone
    counted = classifier_backbone(row)
    attention = counted.get('attention')
    if 'SAResNet' in backbone.type:
        expected = dict(attention, type='ShuffleAttention')
        assert dict(type='ShuffleAttention', **backbone.get('attention', {})) == expected
    else:
        assert backbone.get('attention') == attention
    assert backbone.type.removeprefix('mmdet.').replace('SAR', 'AttentionR') == counted['type']
    assert backbone.depth == counted['depth']
    assert backbone.norm_eval is counted['norm_eval'] is False
    assert backbone.zero_init_residual is False
    assert backbone.out_indices == (3, )
    assert 'frozen_stages' not in backbone
    assert 'init_cfg' not in backbone
