"""tools/reproduce.py from the command line, on real COCO images."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coco import small_coco
from processes import output_of, wait_for, wait_until_free
from sa_mmdet.apps.paper.curves import read_log
from sa_mmdet.checkpoint import read_checkpoint

pytestmark = pytest.mark.xdist_group('reproduce')

TOOL = Path(__file__).parents[1] / 'tools/reproduce.py'
ROW = 'retinanet_sa-r50'
OPTIONS = [
    'model.backbone.init_cfg=None', 'model.test_cfg.score_thr=0.', 'model.test_cfg.max_per_img=10',
    'train_cfg.max_epochs=2', 'train_dataloader.num_workers=1',
    'train_dataloader.dataset.pipeline.2.scale=(96,96)',
    *(f'{split}_dataloader.{option}' for split in ('val', 'test') for option in (
        'num_workers=0', 'persistent_workers=False', 'dataset.pipeline.1.scale=(96,96)')),
]


@pytest.fixture(scope='module')
def coco_root(tmp_path_factory, coco_tiny):
    """Four images of each split, and an object whose outline has no points."""
    root = small_coco(coco_tiny, tmp_path_factory.mktemp('data') / 'coco', images=4)
    path = root / 'annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['segmentation'] = [[]]
    path.write_text(json.dumps(content))
    return root


def command(work_dir, coco_root, *args):
    return [sys.executable, str(TOOL), '--work-dir', str(work_dir), '--data-root', str(coco_root),
            '--rows', ROW, '--gpus', '0', *args, '--cfg-options', *OPTIONS]


def run(work_dir, coco_root):
    return output_of(command(work_dir, coco_root))


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, coco_root):
    """The folder of a run that nothing disturbed."""
    work_dir = tmp_path_factory.mktemp('uninterrupted')
    run(work_dir, coco_root)
    return work_dir


def start(work_dir, coco_root):
    return subprocess.Popen(command(work_dir, coco_root), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, start_new_session=True)


def test_report_of_a_run(uninterrupted, coco_root):
    report = uninterrupted / 'report'
    assert {path.name for path in report.iterdir()} == {
        'report.md', 'report.csv', 'report.json', 'table3.png', 'table4.png', 'curves',
        'detections'}
    for folder in ('curves', 'detections'):
        assert [path.name for path in (report / folder).iterdir()] == [f'{ROW}.png']
    markdown = (report / 'report.md').read_text()
    label = '4 images of instances_val2017.json in coco, NOT COCO val2017'
    assert f'Evaluated on **{label}**' in markdown
    assert f'![{ROW}, seed 0](curves/{ROW}.png)' in markdown
    content = json.loads((report / 'report.json').read_text())
    cells = [cell for cell in content['cells'] if cell['status'] != 'not run']
    assert [cell['metric'] for cell in cells] == [
        'box AP', 'box AP50', 'box AP75', 'box APs', 'box APm', 'box APl']
    result, = content['runs']
    assert (result['row'], result['start'], result['epochs'], result['device']) == (
        ROW, 'random', 2, 'CPU')
    assert 0 < result['hours'] < 0.2


def test_killed_in_the_middle_it_ends_with_the_same_numbers(uninterrupted, tmp_path, coco_root):
    """SIGKILL in the second epoch, and a checkpoint that was not written to its end."""
    killed = start(tmp_path, coco_root)
    folder = tmp_path / ROW / 'seed0'
    wait_for(folder / 'last_checkpoint', killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    wait_until_free(tmp_path)
    checkpoint = (folder / 'epoch_1.pth').read_bytes()
    (folder / 'epoch_2.pth').write_bytes(checkpoint[:len(checkpoint) // 2])

    output = run(tmp_path, coco_root)
    assert 'resumed epoch: 1' in output
    results = [json.loads((work_dir / ROW / 'seed0/result.json').read_text())
               for work_dir in (uninterrupted, tmp_path)]
    assert results[0]['metrics'] == results[1]['metrics']
    weights = [read_checkpoint(work_dir / ROW / 'seed0/epoch_2.pth')['state_dict']
               for work_dir in (uninterrupted, tmp_path)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    logs = [read_log(work_dir / ROW / 'seed0') for work_dir in (uninterrupted, tmp_path)]
    for name in ('loss', 'lr'):
        curves = [log.curve(name) for log in logs]
        assert len(curves[0][0]) == 2
        assert np.array_equal(*curves)


def test_a_finished_run_is_not_repeated(uninterrupted, coco_root, monkeypatch, run_tool):
    result = uninterrupted / ROW / 'seed0/result.json'
    before = result.stat().st_mtime_ns
    monkeypatch.setattr('sa_mmdet.apps.paper.execute.run_child', None)
    code, output = run_tool('reproduce', *command(uninterrupted, coco_root)[2:])
    assert code == 0
    assert '1 of 1 runs are finished' in output
    assert result.stat().st_mtime_ns == before


def test_check(uninterrupted, run_tool):
    code, output = run_tool('reproduce', '--check', '--work-dir', uninterrupted)
    assert code == 0
    assert f'{ROW} seed 0: every figure is as reported' in output
    path = uninterrupted / ROW / 'seed0/detections.bbox.json'
    original = path.read_text()
    detections = json.loads(original)
    detections[-1]['score'] /= 2
    path.write_text(json.dumps(detections))
    code, output = run_tool('reproduce', '--check', '--work-dir', uninterrupted)
    path.write_text(original)
    assert code == 1
    assert 'was changed after it was evaluated' in output


def test_ctrl_c(tmp_path, coco_root, monkeypatch, run_tool):
    def interrupt(run, lock):
        raise KeyboardInterrupt
    monkeypatch.setattr('sa_mmdet.apps.paper.execute.bring_to_end', interrupt)
    code, output = run_tool('reproduce', *command(tmp_path / 'w', coco_root)[2:])
    assert 'interrupted: the same command resumes from the last whole checkpoint' in code
    assert '[1/1] retinanet_sa-r50 seed 0: not started' in output


def test_dry_run(tmp_path, coco_root, run_tool):
    code, output = run_tool('reproduce', *command(tmp_path / 'w', coco_root, '--dry-run')[2:])
    assert code == 0
    assert f'{ROW} seed 0' in output
    assert 'not started' in output
    assert 'tools/train.py' in output
    assert 'tools/test.py' in output
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(('args', 'message'), [
    (['--init', 'vgg=x.pth'], 'give resnet, or imagenet=PATH'),
    (['--init', 'imagenet=x.pth'], 'x.pth does not exist'),
    (['--eval-only', 'retinanet_r50'], 'give ROW=CHECKPOINT'),
    (['--eval-only', 'retinanet_r50=x.pth', '--seeds', '2'], '--eval-only already names the rows'),
    (['--seeds', '0'], '--seeds must be at least 1, got 0'),
    (['--gpus', '-1'], '--gpus must be at least 0'),
    (['--table', '5'], 'invalid choice: 5'),
    (['--table', '2', '3'], 'Tables 1 and 2 use ImageNet, 3 and 4 use COCO'),
    (['--table', '2', '--init', 'imagenet=x.pth'], '--init is for the detectors of Tables 3'),
    (['--check', '--work-dir', 'nowhere'], '--work-dir nowhere does not exist'),
    (['--check', '--work-dir', '.'], 'has no finished run'),
    (['--gpus', '8', '--data-root', 'nowhere'], 'too few GPUs: --gpus 8, but PyTorch sees 0'),
], ids=str)
def test_refusals(args, message, tmp_path, monkeypatch, run_tool):
    monkeypatch.chdir(tmp_path)
    rows = [] if '--eval-only' in args else ['--rows', ROW]
    code, output = run_tool('reproduce', *args, *rows)
    assert code not in (0, None)
    assert message in output
    assert list(tmp_path.iterdir()) == []
