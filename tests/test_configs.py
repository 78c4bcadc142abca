import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope

CONFIGS = Path(__file__).parents[1] / 'configs'
ATTENTION = {
    '': None, 'se': 'SqueezeExcitation', 'eca': 'EfficientChannelAttention',
    'sge': 'SpatialGroupEnhance', 'sa': 'ShuffleAttention'}
ROWS = [(folder, detector, attention, depth)
        for folder, detector, attentions in [
            ('faster_rcnn', 'faster-rcnn', ('', 'se', 'sa')),
            ('retinanet', 'retinanet', ('', 'se', 'sa')),
            ('mask_rcnn', 'mask-rcnn', ('', 'se', 'eca', 'sge', 'sa'))]
        for attention in attentions for depth in (50, 101)]


def path_of(folder, detector, attention, depth):
    prefix = f'{attention}-' if attention else ''
    return CONFIGS / folder / f'{detector}_{prefix}r{depth}_fpn_1x_coco.py'


def test_every_config_is_a_row():
    assert len(ROWS) == 22
    paths = {path for folder, *_ in ROWS for path in (CONFIGS / folder).glob('*.py')}
    assert paths == {path_of(*row) for row in ROWS}


def build(config):
    init_default_scope('mmdet')
    return MODELS.build(config.model)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: path_of(*row).stem)
def test_row_is_the_papers(row):
    """Schedule, batch, learning rate, image scale (the paper's section 4.2) and the attention."""
    folder, _, attention, depth = row
    config = Config.fromfile(path_of(*row))
    assert config.custom_imports.imports == ['sa_mmdet']
    assert config.train_cfg.max_epochs == 12
    step, = (s for s in config.param_scheduler if s.type == 'MultiStepLR')
    assert (step.milestones, step.gamma, step.by_epoch) == ([8, 11], 0.1, True)
    optimizer = config.optim_wrapper.optimizer
    assert optimizer == dict(type='SGD', lr=0.01 if folder == 'retinanet' else 0.02, momentum=0.9,
                             weight_decay=1e-4)
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == 16
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        scales = [t.scale for t in loader.dataset.pipeline if t.type == 'Resize']
        assert scales == [(1333, 800)]
        assert loader.dataset.data_root == 'data/coco/'
    metrics = config.val_evaluator.metric
    assert metrics == (['bbox', 'segm'] if folder == 'mask_rcnn' else 'bbox')

    backbone = build(config).backbone
    assert backbone.depth == depth
    assert backbone.frozen_stages == 1
    assert backbone.norm_eval
    blocks = [block for i in range(1, 5) for block in getattr(backbone, f'layer{i}')]
    assert len(blocks) == {50: 16, 101: 33}[depth]
    layers = [[type(getattr(block, name)).__name__ for name in block.after_conv3_plugin_names]
              if block.with_plugins else [] for block in blocks]
    assert layers == [[ATTENTION[attention]] if attention else []] * len(blocks)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: path_of(*row).stem)
def test_initial_weights_fit_the_backbone(row):
    """All rows start from torchvision's ResNet, converted for the attention when loaded."""
    *_, depth = row
    init = Config.fromfile(path_of(*row)).model.backbone.init_cfg
    assert init == dict(type='Pretrained', checkpoint=f'torchvision://resnet{depth}')


@pytest.mark.parametrize('folder', ['faster_rcnn', 'retinanet', 'mask_rcnn'])
def test_loss_backward_and_predict(folder):
    row, = (row for row in ROWS if row[0] == folder and row[2:] == ('sa', 50))
    config = Config.fromfile(path_of(*row))
    config.model.backbone.init_cfg = None
    model = build(config)
    model.init_weights()
    inputs = demo_mm_inputs(2, [[3, 96, 128]] * 2, num_items=[2, 1], num_classes=80,
                            with_mask=folder == 'mask_rcnn')
    model.train()
    data = model.data_preprocessor(inputs, True)
    losses, _ = model.parse_losses(model(**data, mode='loss'))
    losses.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if '.sa.' in name}
    for name, gradient in gradients.items():
        assert (gradient is None) == ('layer1' in name)
        assert gradient is None or gradient.isfinite().all()
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(inputs, False), mode='predict')
    assert len(results) == 2
    assert all('bboxes' in result.pred_instances for result in results)


def test_tables_have_these_rows():
    """Every row of Tables 3 and 4 has its config, and every config its row."""
    tables = CONFIGS.parents[1] / 'shared/paper/tables.json'
    if not tables.is_file():
        pytest.skip(f'{tables}, the tables of the paper, is not here')
    tables = json.loads(tables.read_text())
    folders = {'Faster R-CNN': 'faster_rcnn', 'Mask R-CNN': 'mask_rcnn', 'RetinaNet': 'retinanet'}
    rows = {(folders[row['detector']], row['attention'].lower().replace('none', ''),
             int(row['backbone'].removeprefix('ResNet-')))
            for table in ('table3_detection_coco_val2017',
                          'table4_instance_segmentation_coco_val2017') for row in tables[table]}
    assert rows == {(folder, attention, depth) for folder, _, attention, depth in ROWS}
