"""A few iterations of every method and ablation, and the way of its weights into a detector.

The ablation without shuffle is trained in test_imagenet_reproduce.py.
"""
import json

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from image_folder import CONFIGS, as_arguments, config_of, small_options
from networks import assert_same_outputs, image
from sa_mmdet.apps.validate.config import read_config
from sa_mmdet.checkpoint import read_checkpoint

# By row: the detector that its weights go into, and the options that this takes.
METHODS = {
    'resnet50': ('mask-rcnn_r50', {}),
    'se-resnet50': ('mask-rcnn_se-r50', {'model.backbone.attention.bias': True}),
    'cbam-resnet50': ('mask-rcnn_se-r50', {'model.backbone.attention.type': 'CBAM'}),
    'sge-resnet50': ('mask-rcnn_sge-r50', {}),
    'eca-resnet50': ('mask-rcnn_eca-r50', {}),
    'sa-resnet50': ('mask-rcnn_sa-r50', {}),
    'sa-resnet50_no-gn': ('mask-rcnn_sa-r50', {'model.backbone.attention.gn': False}),
    'sa-resnet50_no-fc': ('mask-rcnn_sa-r50', {'model.backbone.attention.fc': 'none'}),
    'sa-resnet50_conv': ('mask-rcnn_sa-r50', {'model.backbone.attention.fc': 'conv'}),
}


def data_options(images, *splits):
    return small_options() | {
        f'{split}_dataloader.dataset.data_root': images for split in splits}


@pytest.mark.parametrize('row', METHODS)
def test_every_method(row, images, tool, run_tool, tmp_path):
    """Trained, tested, and in a detector the same features to the last bit."""
    options = as_arguments(data_options(images, 'train', 'val', 'test'))
    output = tool('train.py', config_of(row), '--work-dir', tmp_path, *options)
    assert output.count('loss: ') == 3
    assert 'loss: nan' not in output
    checkpoint = tmp_path / 'epoch_1.pth'
    tool('test.py', config_of(row), checkpoint, '--work-dir', tmp_path / 'test', *options)
    log, = (tmp_path / 'test').glob('*/*.json')
    scalars, = (tmp_path.glob('*/vis_data/scalars.json'))
    validation = json.loads(scalars.read_text().splitlines()[-1])
    tested = json.loads(log.read_text())
    assert {key: tested[key] for key in ('accuracy/top1', 'accuracy/top5')}.items() <= (
        validation.items())

    name, options = METHODS[row]
    detector = CONFIGS / f'mask_rcnn/{name}_fpn_1x_coco.py'
    code, output = run_tool('convert_checkpoint', detector, checkpoint, tmp_path / 'backbone.pth',
                            *(as_arguments(options) if options else []))
    assert not code, output
    assert 'the weights keep their values' in output
    start = {'model.backbone.init_cfg.checkpoint': str(tmp_path / 'backbone.pth')}
    backbone = read_config(detector, options | start).model.backbone
    own = read_config(config_of(row)).model.backbone
    own.out_indices = (0, 1, 2, 3)
    init_default_scope('mmdet')
    transferred, classifiers = MODELS.build(backbone), MODELS.build(own)
    transferred.init_weights()
    classifiers.load_state_dict({
        key.removeprefix('backbone.'): value
        for key, value in read_checkpoint(checkpoint)['state_dict'].items()
        if key.startswith('backbone.')})
    transferred.eval()
    classifiers.eval()
    with torch.no_grad():
        assert_same_outputs(transferred(image()), classifiers(image()), rtol=0, atol=0)
