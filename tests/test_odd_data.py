"""What looks odd and is no mistake trains: by tools/train.py, which runs MMDetection's own."""
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from made import CLASSES, Made, content
from sa_mmdet.apps.train import run_tool
from sa_mmdet.checkpoint.read import is_whole, read_checkpoint

TOOLS = Path(__file__).parents[1] / 'tools'
LIMIT = 300  # seconds, for anything that is waited for

# Imports everything once; each command is a fork of a process that has computed nothing yet.
forkserver = multiprocessing.get_context('forkserver')
forkserver.set_forkserver_preload(
    ['sa_mmdet.apps.train', *(f'mmdet.{name}' for name in ('datasets', 'engine', 'evaluation'))])

ANCHORS = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[1.0],
               strides=[8, 16, 32, 64, 128])
HEAD = dict(type='RetinaHead', num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1,
            anchor_generator=ANCHORS)
NECK = dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=5)
TEST = dict(nms_pre=10, min_bbox_size=0, score_thr=0., max_per_img=5,
            nms=dict(type='nms', iou_threshold=0.5))
ASSIGNER = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
                ignore_iof_thr=-1)
DETECTOR = dict(
    type='RetinaNet', neck=NECK, bbox_head=HEAD, test_cfg=TEST,
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(type='SAResNet', depth=50, base_channels=16, attention=dict(groups=4)),
    train_cfg=dict(assigner=ASSIGNER, sampler=dict(type='PseudoSampler'), allowed_border=-1,
                   pos_weight=-1, debug=False))
TRAINING = dict(
    custom_imports=dict(imports=['sa_mmdet']), default_scope='mmdet',
    train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1), val_cfg=dict(type='ValLoop'),
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-4)))
LOAD = dict(type='LoadImageFromFile')
TRAIN_STEPS = [LOAD, dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]
TEST_STEPS = [LOAD, dict(type='Resize', scale=(64, 48), keep_ratio=True),
              dict(type='PackDetInputs', meta_keys=(
                  'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]


@pytest.fixture
def made(tmp_path):
    """A training of a slim detector on two small images."""
    made = Made(tmp_path / 'data')
    made.config.merge_from_dict(dict(TRAINING, model=DETECTOR))
    for split, steps in (('train', TRAIN_STEPS), ('val', TEST_STEPS)):
        loader = made.config[f'{split}_dataloader']
        loader.update(batch_size=1, num_workers=0,
                      sampler=dict(type='DefaultSampler', shuffle=False))
        loader.dataset.update(pipeline=steps, test_mode=split == 'val')
    return made


def command(log: Path, *args: str) -> None:
    """tools/train.py, in a process of its own."""
    os.chdir(log.parent)
    sys.path.insert(0, str(log.parent))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    sys.argv = ['train.py', *args]
    run_tool('train.py', ('train', 'val'))


def run(made, *args, config=None, checkpoint='epoch_1.pth') -> str:
    """Train; what was printed."""
    made.write()
    if config is None:
        config = made.root / 'config.py'
        made.config.dump(config)
    log = made.root / 'output.log'
    process = forkserver.Process(
        target=command, args=(log, str(config), '--work-dir', str(made.root / 'out'), *args))
    process.start()
    process.join(LIMIT)
    output = log.read_text()
    assert process.exitcode == 0, output[-3000:]
    assert 'warning: ' not in output
    assert is_whole(made.root / 'out' / checkpoint)
    return output


def test_background_images(made):
    made.files['background'] = content(objects=[])
    parts = [made.dataset(name, pipeline=TRAIN_STEPS, filter_cfg=dict(filter_empty_gt=False))
             for name in ('train', 'background')]
    made.config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    made.config.default_hooks = dict(checkpoint=dict(
        type='AtomicCheckpointHook', published_keys=['meta', 'state_dict']))
    assert 'coco/bbox_mAP' in run(made)
    published, = made.root.glob('out/epoch_1-*.pth')
    assert read_checkpoint(published).keys() == {'meta', 'state_dict'}


def test_classes_in_a_file_and_images_in_folders(made):
    made.root.mkdir()
    (made.root / 'classes.txt').write_text('\n'.join(CLASSES))
    for dataset in made.sets:
        dataset.metainfo.classes = f'{made.root}/classes.txt'
    for annotations in made.files.values():
        annotations['images'][0]['file_name'] = 'cam 1/0001.png'
    assert 'coco/bbox_mAP' in run(made)


NOTES = '''
import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Notes(Hook):

    def after_train_iter(self, runner, *args, **kwargs):
        runner.message_hub.update_info('low', np.float64(0) < 1)
        runner.message_hub.update_info('words', np.array(['a', 'b']))
'''


def test_numpy_in_checkpoints(made):
    """In what training starts from, and in what it leaves and is resumed from."""
    made.root.mkdir()
    (made.root / 'notes.py').write_text(NOTES)
    made.config.custom_imports.imports = ['sa_mmdet', 'notes']
    made.config.custom_hooks = [dict(type='Notes')]
    init_default_scope('mmdet')
    model = MODELS.build(made.config.model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(flag=np.bool_(True))),
               made.root / 'a.pth')
    made.config.load_from = f'{made.root}/a.pth'
    assert f'Load checkpoint from {made.root}/a.pth' in run(made)
    made.config.train_cfg.max_epochs = 2
    made.config.load_from = None
    assert 'resumed epoch: 1' in run(made, '--resume')


SEMI = """
_base_ = 'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
custom_imports = dict(imports=['sa_mmdet'])
model = dict(
    data_preprocessor=dict(data_preprocessor=dict(pad_size_divisor=32)),
    detector=dict(
        backbone=dict(_delete_=True, type='SAResNet', depth=50, base_channels=16,
                      attention=dict(groups=4)),
        neck=dict(in_channels=[64, 128, 256, 512]),
        roi_head=dict(bbox_head=dict(num_classes=3))))
"""


def test_semi_supervised(made, monkeypatch):
    """SoftTeacher on labelled and unlabelled images, from a plain detector that is converted."""
    made.files['unlabelled'] = content(objects=[])
    del made.files['unlabelled']['annotations']
    made.write()
    (made.root / 'semi.py').write_text(SEMI)
    config = Config.fromfile(made.root / 'semi.py')
    labelled, unlabelled = config.train_dataloader.dataset.datasets
    for dataset, name in ((labelled, 'train'), (unlabelled, 'unlabelled'),
                          (config.val_dataloader.dataset, 'val')):
        place = made.dataset(name)
        dataset.update({key: place[key] for key in (
            'data_root', 'ann_file', 'data_prefix', 'metainfo')})
    config.merge_from_dict({
        'train_dataloader.batch_size': 2, 'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False, 'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'train_dataloader.sampler.batch_size': 2, 'train_dataloader.sampler.source_ratio': [1, 1],
        'val_evaluator.ann_file': f'{made.root}/val.json',
        'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1})
    for pipeline in (labelled.pipeline, config.val_dataloader.dataset.pipeline):
        resize = next(step for step in pipeline if 'Resize' in step['type'])
        resize.scale = [(64, 48), (64, 64)] if resize.type == 'RandomResize' else (64, 48)
    for branch in ('unsup_teacher', 'unsup_student'):
        unlabelled.pipeline[-1][branch][0].scale = [(64, 48), (64, 64)]

    init_default_scope('mmdet')
    plain = dict(type='ResNet', depth=50, base_channels=16)
    plain = MODELS.build(dict(config.model.detector, backbone=plain))
    torch.save(plain.state_dict(), made.root / 'plain.pth')
    config.dump(made.root / 'semi.py')
    monkeypatch.setattr(sys, 'argv', [
        'convert_checkpoint.py', str(made.root / 'semi.py'), str(made.root / 'plain.pth'),
        str(made.root / 'detector.pth'), '--verify'])
    runpy.run_path(str(TOOLS / 'convert_checkpoint.py'), run_name='__main__')
    config.load_from = f'{made.root}/detector.pth'
    config.dump(made.root / 'semi.py')
    output = run(made, config=made.root / 'semi.py', checkpoint='iter_1.pth')
    assert 'bottlenecks were converted' not in output
    assert 'unexpected key' not in output
    assert 'teacher/coco/bbox_mAP' in output


PURE = """
from mmengine.config import read_base
with read_base():
    from .base import *
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, RetinaHead, RetinaNet
from sa_mmdet.models import SAResNet

model.update(dict(type=RetinaNet))
model['backbone'].update(dict(type=SAResNet))
model['neck'].update(dict(type=FPN))
model['bbox_head'].update(dict(type=RetinaHead))
train_dataloader['dataset'].update(dict(type=CocoDataset))
val_dataloader['dataset'].update(dict(type=CocoDataset))
val_evaluator.update(dict(type=CocoMetric))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
test_cfg = dict(type='TestLoop')
"""


def test_pure_python_config(made, run_tool):
    """Classes in the place of names: trained, converted and drawn, after the same checks."""
    made.write()
    made.config.pop('custom_imports')
    made.config.dump(made.root / 'base.py')
    config = made.root / 'pure.py'
    config.write_text(PURE)
    assert 'coco/bbox_mAP' in run(made, config=config)
    torch.save(ResNet(50, base_channels=16).state_dict(), made.root / 'plain.pth')
    code, output = run_tool('convert_checkpoint', config, made.root / 'plain.pth',
                            made.root / 'backbone.pth', '--verify')
    assert (code, output.count('largest difference')) == (0, 4), output
    code, output = run_tool(
        'visualize', 'predict', config, made.root / 'out/epoch_1.pth', '--images', 1,
        '--out-dir', made.root / 'pictures')
    assert code == 0, output

    made.train['annotations'] = []
    made.write()
    code, output = run_tool('train', config, '--work-dir', made.root / 'out')
    assert 'none to learn from' in code
