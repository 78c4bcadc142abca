"""Training, testing and resuming on real COCO images, by the commands that users type."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from sa_mmdet.environment import tools_of

ROOT = Path(__file__).parents[1]
DETECTORS = {
    'faster_rcnn': 'faster-rcnn', 'retinanet': 'retinanet', 'mask_rcnn': 'mask-rcnn'}
METRIC = re.compile(r'coco/(\w+): (-?[\d.]+)')


def config_of(folder):
    return ROOT / f'configs/{folder}/{DETECTORS[folder]}_sa-r50_fpn_1x_coco.py'


def reduced(folder, coco_tiny, images=4, size=128, epochs=1):
    """Options that make a run on a few small images of ``coco_tiny``, with few proposals."""
    options = [f'train_cfg.max_epochs={epochs}', 'optim_wrapper.optimizer.lr=1e-4',
               'model.backbone.init_cfg=None']
    if folder != 'retinanet':
        options += ['model.train_cfg.rpn_proposal.max_per_img=50',
                    'model.test_cfg.rpn.max_per_img=50']
    for split in ('train', 'val', 'test'):
        loader = f'{split}_dataloader'
        resize = 1 if split != 'train' else 2
        options += [
            f'{loader}.num_workers=0', f'{loader}.persistent_workers=False',
            f'{loader}.dataset.data_root={coco_tiny}/', f'{loader}.dataset.indices={images}',
            f'{loader}.dataset.pipeline.{resize}.scale=({size},{size})'
        ]
    annotations = f'{coco_tiny}/annotations/instances_val2017.json'
    return [*options, f'val_evaluator.ann_file={annotations}',
            f'test_evaluator.ann_file={annotations}']


def all_scores(folder):
    """Keep the best detections of any score: hardly trained detectors are sure of nothing."""
    settings = 'model.test_cfg' + ('' if folder == 'retinanet' else '.rcnn')
    return f'{settings}.score_thr=0.', f'{settings}.max_per_img=10'


def run(*command, cwd, options, fails=False):
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    result = subprocess.run(
        [*map(str, command), '--cfg-options', *options], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {'PATH': path})
    assert bool(result.returncode) == fails, result.stdout[-5000:]
    assert 'Could not safely load weights' not in result.stdout  # onedl's way to weights_only=False
    return result.stdout


def metrics(output):
    """The last value of each COCO metric in a log."""
    return {name: float(value) for name, value in METRIC.findall(output)}


@pytest.mark.parametrize('folder', DETECTORS)
def test_mmdetections_own_commands(tmp_path, coco_tiny, folder):
    """Train, test and resume by the installed MMDetection's scripts, from any directory."""
    options = [*reduced(folder, coco_tiny), *all_scores(folder)]
    train = (sys.executable, tools_of('mmdet') / 'train.py', config_of(folder))
    trained = run(*train, cwd=tmp_path, options=options)
    work_dir = tmp_path / 'work_dirs' / config_of(folder).stem
    checkpoint = work_dir / 'epoch_1.pth'
    tested = run(sys.executable, tools_of('mmdet') / 'test.py', config_of(folder), checkpoint,
                 cwd=tmp_path, options=options)
    tasks = ('bbox', 'segm') if folder == 'mask_rcnn' else ('bbox', )
    names = {f'{task}_mAP{part}' for task in tasks
             for part in ('', '_50', '_75', '_s', '_m', '_l')}
    assert metrics(tested).keys() == names
    assert metrics(tested) == metrics(trained)

    if folder == 'mask_rcnn':
        resumed = run(*train, '--resume', cwd=tmp_path,
                      options=reduced(folder, coco_tiny, epochs=2))
        assert 'resumed epoch: 1' in resumed
        assert 'bottlenecks were converted' not in resumed
        assert (work_dir / 'epoch_2.pth').is_file()


# MMDetection divides a process's losses by what that process sampled. Where every image gives the
# same number of samples, and no chance is in it, this is the mean over the images.
FIRST_SAMPLER = '''
from mmdet.models.task_modules import RandomSampler
from mmdet.registry import TASK_UTILS


@TASK_UTILS.register_module()
class FirstSampler(RandomSampler):

    def random_choice(self, gallery, num):
        return gallery[:num]
'''
WITHOUT_CHANCE = f'''
_base_ = {str(config_of('mask_rcnn'))!r}
custom_imports = dict(imports=['sa_mmdet', 'first_sampler'])
sampler = dict(type='FirstSampler', num=32)
one_object = dict(type='FirstSampler', num=4)  # there is one in every image
model = dict(train_cfg=dict(rpn=dict(sampler=sampler), rcnn=dict(sampler=one_object)))
train_dataloader = dict(sampler=dict(shuffle=False), batch_sampler=None)
randomness = dict(seed=0)
'''
SAME_SIZE = [
    'train_dataloader.dataset.pipeline.2.keep_ratio=False',
    'train_dataloader.dataset.pipeline.3.prob=0.'
]
UNEVEN = ['val_dataloader.dataset.indices=3', 'test_dataloader.dataset.indices=3']


def gradients(checkpoint):
    """What SGD gathered in its momentum, by the parameter's place in the optimizer."""
    states = torch.load(checkpoint)['optimizer']['state']
    return {place: state['momentum_buffer'] for place, state in states.items()}


def test_two_cpu_processes(tmp_path, coco_tiny, monkeypatch):
    """Two processes learn and find what one does with the whole batch."""
    (tmp_path / 'first_sampler.py').write_text(FIRST_SAMPLER)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}')
    monkeypatch.setenv('PORT', str(get_free_port()))
    config = tmp_path / 'config.py'
    config.write_text(WITHOUT_CHANCE)
    options = [*reduced('mask_rcnn', coco_tiny), *all_scores('mask_rcnn'), *SAME_SIZE, *UNEVEN]

    def run_into(name, *command, **more):
        outputs = f'{tmp_path}/{name}'
        return run(*command, '--work-dir', outputs, cwd=tmp_path, options=[
            *options, f'val_evaluator.outfile_prefix={outputs}',
            f'test_evaluator.outfile_prefix={outputs}',
            *(f'{key}={value}' for key, value in more.items())])

    def detections(name):
        return [json.loads((tmp_path / f'{name}.{task}.json').read_text())
                for task in ('bbox', 'segm')]

    train, test = ROOT / 'tools/train.py', ROOT / 'tools/test.py'
    trained = run_into('trained', ROOT / 'tools/dist_train.sh', config, 2,
                       **{'train_dataloader.batch_size': 1})
    assert 'Epoch(train) [1][2/2]' in trained  # 4 images, batch 1, 2 processes
    checkpoint = tmp_path / 'trained/epoch_1.pth'
    run_into('trained_alone', sys.executable, train, config)
    expected = gradients(tmp_path / 'trained_alone/epoch_1.pth')
    actual = gradients(checkpoint)
    assert actual.keys() == expected.keys()
    for place, gradient in expected.items():
        assert (actual[place] - gradient).norm() <= 1e-4 * gradient.norm(), place

    tested = run_into('tested', ROOT / 'tools/dist_test.sh', config, checkpoint, 2)
    alone = run_into('alone', sys.executable, test, config, checkpoint)
    assert metrics(tested) == metrics(alone) == metrics(trained)
    assert detections('tested') == detections('alone') == detections('trained')
    assert len(detections('alone')[1]) == 30  # 3 images, the 10 best of each


MURDER = '''
import os
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Murder(Hook):

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.mark.slow
def test_one_of_two_processes_dies(tmp_path, coco_tiny, monkeypatch):
    """The other ends as well, and the command fails."""
    (tmp_path / 'murder.py').write_text(MURDER)
    (tmp_path / 'config.py').write_text(f'''
_base_ = {str(config_of('mask_rcnn'))!r}
custom_imports = dict(imports=['sa_mmdet', 'murder'])
custom_hooks = [dict(type='Murder')]
''')
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}')
    monkeypatch.setenv('PORT', str(get_free_port()))
    result = run(ROOT / 'tools/dist_train.sh', tmp_path / 'config.py', 2, cwd=tmp_path,
                 options=reduced('mask_rcnn', coco_tiny, epochs=1000), fails=True)
    assert 'Signal 9 (SIGKILL)' in result
    assert 'Epoch(val)' not in result


@pytest.mark.slow
def test_mask_rcnn_overfits_four_images(tmp_path, coco_tiny, monkeypatch):
    """The quickstart's detector, from scratch on four images, finds their objects again.

    Two processes find them as one does.
    """
    # CocoMetric counts the objects of all images in its file, so the file has these four alone.
    content = json.loads((coco_tiny / 'annotations/instances_train2017.json').read_text())
    content['images'] = content['images'][:4]
    ids = {image['id'] for image in content['images']}
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in ids]
    (tmp_path / 'four.json').write_text(json.dumps(content))
    (tmp_path / 'config.py').write_text(f'''
_base_ = {str(ROOT / 'configs/quickstart/mask-rcnn_sa-r50_fpn_shapes.py')!r}
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=80), mask_head=dict(num_classes=80)),
    test_cfg=dict(rcnn=dict(max_per_img=100)))
data = dict(
    type='CocoDataset', data_root='{coco_tiny}/',
    ann_file='{tmp_path}/four.json', data_prefix=dict(img='train2017/'))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(224, 224), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_dataloader = dict(dataset=dict(_delete_=True, **data, pipeline=[
    pipeline[0], pipeline[2], pipeline[1], dict(type='PackDetInputs')]))
val_dataloader = dict(dataset=dict(_delete_=True, **data, test_mode=True, pipeline=[
    *pipeline, dict(type='PackDetInputs', meta_keys=keys)]))
val_evaluator = dict(ann_file='{tmp_path}/four.json')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=300, val_begin=300)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=300, milestones=[200, 270], gamma=0.1)]
default_hooks = dict(checkpoint=dict(interval=300))
''')
    output = run(sys.executable, ROOT / 'tools/train.py', tmp_path / 'config.py', cwd=tmp_path,
                 options=['randomness.seed=0'])
    assert metrics(output)['bbox_mAP'] > 0.5
    monkeypatch.setenv('PORT', str(get_free_port()))
    tested = run(ROOT / 'tools/dist_test.sh', tmp_path / 'config.py',
                 tmp_path / 'work_dirs/config/epoch_300.pth', 2, cwd=tmp_path,
                 options=['randomness.seed=0'])
    assert metrics(tested) == metrics(output)
