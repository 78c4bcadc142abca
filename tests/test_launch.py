"""The tools as commands: what they pass on to MMDetection, and what they refuse before it."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/faster_rcnn/faster-rcnn_sa-r50_fpn_1x_coco.py'
PLAIN = ROOT / 'configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


def run(*command, cwd, **env):
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    return subprocess.run([str(part) for part in command], cwd=cwd, text=True,
                          capture_output=True, env=os.environ | {'PATH': path} | env)


def tool(name, *args, cwd, **env):
    return run(sys.executable, ROOT / 'tools' / name, *args, cwd=cwd, **env)


@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_help_is_mmdetections(tmp_path, name):
    result = tool(name, '--help', cwd=tmp_path)
    assert result.returncode == 0
    for option in ('--work-dir', '--cfg-options', '--launcher'):
        assert option in result.stdout


@pytest.mark.parametrize('args', [('train.py', CONFIG), ('test.py', CONFIG, CONFIG)],
                         ids=['train', 'test'])
def test_missing_data(tmp_path, args):
    result = tool(*args, cwd=tmp_path)
    assert result.returncode == 1
    assert '\nerror: the data set is incomplete; not found:\n' in f'\n{result.stderr}'
    splits = ['val'] if args[0] == 'test.py' else ['train', 'val']
    for split in splits:
        assert f'{tmp_path}/data/coco/annotations/instances_{split}2017.json\n' in result.stderr
        assert f'{tmp_path}/data/coco/{split}2017\n' in result.stderr
    assert 'Traceback' not in result.stderr
    assert not list(tmp_path.iterdir())


def test_missing_data_of_wrapped_and_concatenated_data_sets(tmp_path):
    (tmp_path / 'config.py').write_text(f'''
_base_ = {str(CONFIG)!r}
part = dict(type='CocoDataset', data_root='a/', ann_file='b.json', data_prefix=dict(img='c/'))
train_dataloader = dict(dataset=dict(
    _delete_=True, type='RepeatDataset', times=2,
    dataset=dict(type='ConcatDataset', datasets=[part])))
''')
    result = tool('train.py', 'config.py', cwd=tmp_path)
    assert f'{tmp_path}/a/b.json' in result.stderr
    assert f'{tmp_path}/a/c\n' in result.stderr


def test_missing_config_and_checkpoint(tmp_path):
    result = tool('train.py', 'no.py', cwd=tmp_path)
    assert result.stderr.endswith(f'error: config {tmp_path}/no.py does not exist\n')
    result = tool('test.py', CONFIG, 'no.pth', cwd=tmp_path)
    assert result.stderr.endswith(f'error: checkpoint {tmp_path}/no.pth does not exist\n')


@pytest.fixture
def data(tmp_path):
    """Files enough for the check of COCO's layout to pass."""
    root = tmp_path / 'data/coco'
    for name in ('annotations', 'train2017', 'val2017'):
        (root / name).mkdir(parents=True)
    for split in ('train', 'val'):
        (root / f'annotations/instances_{split}2017.json').write_text('{}')


@pytest.mark.usefixtures('data')
@pytest.mark.parametrize('config', [CONFIG, PLAIN], ids=['attention', 'plain'])
def test_initial_weights_that_cannot_be_found(tmp_path, config):
    (tmp_path / 'torchvision.py').write_text('raise RuntimeError("torchvision::nms")')
    result = tool('train.py', config, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "error: the initial weights are torchvision's" in result.stderr
    assert 'model.backbone.init_cfg.checkpoint=FILE' in result.stderr


def test_wrong_option(tmp_path):
    result = tool('train.py', CONFIG, '--ampere', cwd=tmp_path)
    assert result.returncode == 2
    assert 'unrecognized arguments: --ampere' in result.stderr


def fake_program(folder, name):
    """A program that prints its arguments, one a line."""
    path = folder / name
    path.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    path.chmod(0o755)


@pytest.mark.parametrize(('script', 'args', 'expected'), [
    ('slurm_train.sh', ['part', 'job', 'cfg.py', 'work', '--amp'],
     ['tools/train.py', 'cfg.py', '--work-dir=work', '--launcher=slurm', '--amp']),
    ('slurm_test.sh', ['part', 'job', 'cfg.py', 'a.pth', '--tta'],
     ['tools/test.py', 'cfg.py', 'a.pth', '--launcher=slurm', '--tta']),
])
def test_slurm(tmp_path, script, args, expected):
    fake_program(tmp_path, 'srun')
    path = f'{tmp_path}:{Path(sys.executable).parent}:{os.environ["PATH"]}'
    result = run(ROOT / 'tools' / script, *args, cwd=ROOT, PATH=path, GPUS='16')
    lines = result.stdout.split()
    assert result.returncode == 0
    assert lines[-len(expected):] == expected
    assert '--ntasks=16' in lines
    assert lines[:2] == ['-p', 'part']


@pytest.mark.parametrize(('script', 'args', 'expected'), [
    ('dist_train.sh', ['cfg.py', '4', '--amp'], ['cfg.py', '--launcher', 'pytorch', '--amp']),
    ('dist_test.sh', ['cfg.py', 'a.pth', '4'], ['cfg.py', 'a.pth', '--launcher', 'pytorch']),
])
def test_torch_distributed_starts_our_tool(tmp_path, script, args, expected):
    """One GPU a process, several nodes by MMDetection's environment variables."""
    (tmp_path / 'python').write_text('#!/bin/sh\n'
                                     f'[ "$1" = -c ] && exec {sys.executable} "$@"\n'
                                     'for a in "$@"; do echo $a; done\n')
    (tmp_path / 'python').chmod(0o755)
    result = run(ROOT / 'tools' / script, *args, cwd=tmp_path,
                 PATH=f'{tmp_path}:{os.environ["PATH"]}', NNODES='2', NODE_RANK='1')
    lines = result.stdout.split()
    name = script.removeprefix('dist_').replace('.sh', '.py')
    assert lines[-len(expected) - 1:] == [str(ROOT / 'tools' / name), *expected]
    assert {'--nproc_per_node=4', '--nnodes=2', '--node_rank=1'} <= set(lines)


@pytest.mark.usefixtures('data')
def test_slurm_without_a_gpu(tmp_path):
    result = tool('train.py', CONFIG, '--launcher', 'slurm', '--cfg-options',
                  'model.backbone.init_cfg=None', cwd=tmp_path)
    assert 'error: --launcher slurm needs a GPU on every node' in result.stderr
