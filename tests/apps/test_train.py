"""The tools as commands: what they pass on to MMDetection, and what they refuse before it."""
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from coco import drawn_coco
from sa_mmdet.apps.train import run_tool
from sa_mmdet.checkpoint.read import REFUSE_CODE, TRUST_CODE

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/faster_rcnn/faster-rcnn_sa-r50_fpn_1x_coco.py'
MASKS = ROOT / 'configs/mask_rcnn/mask-rcnn_sa-r50_fpn_1x_coco.py'
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


@pytest.mark.parametrize('args', [('train.py', CONFIG), ('test.py', CONFIG, 'a.pth')],
                         ids=['train', 'test'])
def test_missing_data(tmp_path, args):
    torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    result = tool(*args, cwd=tmp_path)
    assert result.returncode == 1
    assert '\nerror: the data set is incomplete. Not found:\n' in f'\n{result.stderr}'
    splits = ['val'] if args[0] == 'test.py' else ['train', 'val']
    for split in splits:
        assert f'{tmp_path}/data/coco/annotations/instances_{split}2017.json\n' in result.stderr
        assert f'{tmp_path}/data/coco/{split}2017\n' in result.stderr
    assert 'Traceback' not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


def test_two_processes_print_one_error(tmp_path):
    result = run('bash', ROOT / 'tools/dist_train.sh', CONFIG, '2', cwd=tmp_path, PORT='29521')
    assert result.returncode == 1
    assert result.stderr.count('error: the data set is incomplete') == 1


def test_no_checks(tmp_path):
    """MMDetection then finds out by itself."""
    result = tool('train.py', CONFIG, '--no-checks', '--cfg-options',
                  'model.backbone.init_cfg=None', cwd=tmp_path)
    assert result.returncode == 1
    assert 'FileNotFoundError' in result.stderr
    assert 'error: the data set is incomplete' not in result.stderr


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
    assert f'\nerror: config {tmp_path}/no.py does not exist: ' in f'\n{result.stderr}'
    result = tool('test.py', CONFIG, 'no.pth', cwd=tmp_path)
    assert (f'\nerror: checkpoint {tmp_path}/no.pth does not exist: give the path of a checkpoint\n'
            in f'\n{result.stderr}')


@pytest.fixture
def data(tmp_path):
    """Files enough for the check of COCO's layout to pass."""
    drawn_coco(tmp_path / 'data/coco')


@pytest.mark.usefixtures('data')
@pytest.mark.parametrize('config', [CONFIG, PLAIN], ids=['attention', 'plain'])
def test_initial_weights_that_cannot_be_found(tmp_path, config):
    (tmp_path / 'torchvision.py').write_text('raise RuntimeError("torchvision::nms")')
    (tmp_path / 'mmpretrain.py').write_text('raise ImportError')
    result = tool('train.py', config, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "error: the initial weights are torchvision's" in result.stderr
    assert 'model.backbone.init_cfg.checkpoint=FILE' in result.stderr


@pytest.mark.parametrize(('name', 'args'), [
    ('test.py', [CONFIG, '{}']),
    ('train.py', [CONFIG, '--resume', '{}']),
    ('train.py', [CONFIG, '--cfg-options', 'load_from={}']),
    ('train.py', [CONFIG, '--cfg-options', 'model.backbone.init_cfg.checkpoint={}']),
], ids=['test', 'resume', 'load_from', 'init_cfg'])
def test_checkpoints_are_checked_before_anything_starts(attack, monkeypatch, name, args):
    monkeypatch.setattr(sys, 'argv', [name, *(str(arg).format(attack) for arg in args)])
    monkeypatch.chdir(attack.parent)
    attacked = attack.with_name('attacked')
    with pytest.raises(SystemExit, match=rf'^error: checkpoint {attack} holds more than weights '
                                         rf'\(posix\.mkdir\).* {TRUST_CODE}=1'):
        run_tool(name, ('train', 'val', 'test'))
    assert not attacked.exists()
    monkeypatch.delenv(REFUSE_CODE)
    monkeypatch.setenv(TRUST_CODE, '1')
    with pytest.raises(SystemExit, match='the data set is incomplete'):
        run_tool(name, ('train', 'val', 'test'))
    assert attacked.exists()
    attack.write_bytes(attack.read_bytes()[:200])
    with pytest.raises(SystemExit, match=rf'^error: checkpoint {attack} is not a .* or is damaged'):
        run_tool(name, ('train', 'val', 'test'))


@pytest.mark.parametrize(('splits', 'message'), [
    (('train', 'val'), '^interrupted: run the same command with --resume'),
    (('test', ), '^interrupted$')], ids=['train', 'test'])
@pytest.mark.usefixtures('data')
def test_ctrl_c(tmp_path, monkeypatch, splits, message):
    def main():
        raise KeyboardInterrupt

    args = SimpleNamespace(
        config=str(CONFIG), work_dir=None, launcher='none',
        cfg_options={'model.backbone.init_cfg': None})
    tool = dict(parse_args=lambda: args, main=main)
    monkeypatch.setattr('runpy.run_path', lambda *_, **__: tool)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run_tool('train.py', splits)


@pytest.mark.parametrize(('arguments', 'is_classifier'), [
    (['classifier.py'], True), (['detector.py'], False), (['--resume', 'classifier.py'], True),
    (['--out', 'metrics.json', 'classifier.py', 'a.pth'], True), (['gone.py'], False), ([], False),
], ids=str)
def test_mmpretrains_scripts_are_for_its_configs(tmp_path, monkeypatch, arguments, is_classifier):
    """Wherever the config stands in the command line, which neither parser has read yet."""
    (tmp_path / 'classifier.py').write_text("default_scope = 'mmpretrain'\n")
    (tmp_path / 'detector.py').write_text("default_scope = 'mmdet'\n")
    (tmp_path / 'metrics.json').write_text('{"accuracy/top1": 70.0}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['test.py', *arguments])
    monkeypatch.setattr('sa_mmdet.apps.train.mmpretrain_problem', lambda: 'MMPretrain is missing')
    with pytest.raises(SystemExit) as exit_:
        run_tool('test.py', ('test', ))
    assert (exit_.value.code == 'error: MMPretrain is missing') == is_classifier


def test_code_in_a_downloaded_checkpoint_is_refused(attack, coco_tiny):
    """One that MMEngine fetches itself, and onedl-mmengine would load with weights_only=False."""
    handler = partial(SimpleHTTPRequestHandler, directory=attack.parent)
    with ThreadingHTTPServer(('localhost', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = tool(
            'test.py', CONFIG, f'http://localhost:{server.server_port}/attack.pth',
            '--cfg-options', f'test_dataloader.dataset.data_root={coco_tiny}/',
            f'test_evaluator.ann_file={coco_tiny}/annotations/instances_val2017.json',
            cwd=attack.parent, TORCH_HOME=str(attack.parent / 'torch'))
        server.shutdown()
    assert list(attack.parent.glob('torch/hub/checkpoints/attack*.pth'))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        f'error: http://localhost:{server.server_port}/attack.pth holds more than weights')
    assert 'Traceback' not in result.stderr
    assert not attack.with_name('attacked').exists()


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
@pytest.mark.parametrize(('name', 'args', 'message'), [
    ('train.py', ['--amp'], '^error: --amp: .* Leave it out'),
    ('train.py', ['--cfg-options', 'optim_wrapper.type=AmpOptimWrapper'],
     '^error: optim_wrapper.type=AmpOptimWrapper: .* Leave it out'),
    ('test.py', ['a.pth', '--tta'], '^error: --tta: MaskRCNN predicts masks, .* Leave it out'),
], ids=['amp', 'amp in the config', 'tta'])
def test_options_that_cannot_work(tmp_path, monkeypatch, name, args, message):
    torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(MASKS)!r}\nmodel = dict(backbone=dict(init_cfg=None))')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [name, 'config.py', *args])
    with pytest.raises(SystemExit, match=message):
        run_tool(name, ('train', 'val') if name == 'train.py' else ('test', ))


@pytest.mark.usefixtures('data')
def test_a_checkpoint_that_cannot_be_resumed_is_named(tmp_path):
    """One that MMEngine finds itself."""
    torch.save(dict(state_dict={}, meta=Path('a')), tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text(f'{tmp_path}/epoch_1.pth')
    result = tool('train.py', CONFIG, '--resume', '--work-dir', tmp_path, '--cfg-options',
                  'model.backbone.init_cfg=None', 'train_dataloader.num_workers=0',
                  'train_dataloader.persistent_workers=False', cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        f'error: {tmp_path}/epoch_1.pth holds more than weights (pathlib')
    assert TRUST_CODE in result.stderr


@pytest.mark.usefixtures('data')
def test_slurm_without_a_gpu(tmp_path):
    result = tool('train.py', CONFIG, '--launcher', 'slurm', '--cfg-options',
                  'model.backbone.init_cfg=None', cwd=tmp_path)
    assert 'error: --launcher slurm needs a GPU on every node' in result.stderr


@pytest.mark.usefixtures('data')
def test_synchronised_batch_norms_without_a_gpu(tmp_path):
    """The remedy is the options to add."""
    options = ['model.backbone.init_cfg=None', 'model.backbone.norm_cfg.type=SyncBN',
               'model.roi_head.bbox_head.norm_cfg.type=MMSyncBN', 'sync_bn=torch']
    result = tool('train.py', CONFIG, '--launcher', 'pytorch', '--cfg-options', *options,
                  cwd=tmp_path)
    assert result.returncode == 1
    assert 'error: synchronised batch norm needs GPUs' in result.stderr
    assert result.stderr.endswith(
        'On CPUs, use ordinary batch norm: --cfg-options model.backbone.norm_cfg.type=BN '
        'model.roi_head.bbox_head.norm_cfg.type=BN sync_bn=None\n')
