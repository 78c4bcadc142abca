import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sa_mmdet.ops import implementations

ROOT = Path(__file__).parents[1]
QUICKSTART = [sys.executable, str(ROOT / 'tools/quickstart.py')]
FEW = ['train_dataloader.dataset.indices=8', 'test_dataloader.dataset.indices=4',
       'train_cfg.max_epochs=1']


def run(cwd, *args, **environment):
    return subprocess.run([*QUICKSTART, *args], cwd=cwd, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False, env=os.environ | environment)


def logged(folder, file):
    """The dicts in a file of the log's folder, one a line."""
    file, = (folder / 'work_dirs/quickstart').glob(f'*/{file}')
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_two_iterations_are_under_the_floor_and_a_second_run_goes_on(tmp_path):
    first = run(tmp_path, '--cfg-options', *FEW)
    assert first.returncode == 1, first.stdout
    assert 'AP is below the minimum of 0.5' in first.stdout
    assert 'eta:' in first.stdout
    assert (tmp_path / 'work_dirs/quickstart/predictions.png').stat().st_size > 10_000
    second = run(tmp_path, '--min-ap', '-1', '--cfg-options', *FEW)
    assert second.returncode == 0, second.stdout
    assert 'resumed epoch: 1' in second.stdout
    assert 'Epoch(train)' not in second.stdout
    for output in (first.stdout, second.stdout):
        assert '│ bbox │' in output
        assert '│ segm │' in output


def test_folder_of_something_else(tmp_path):
    (tmp_path / 'data/shapes').mkdir(parents=True)
    (tmp_path / 'data/shapes/notes.txt').touch()
    result = run(tmp_path)
    assert result.returncode == 1
    assert result.stdout.endswith('remove it, or choose another folder\n')
    assert 'error: data/shapes exists, but is not the data set of drawn shapes' in result.stdout
    assert 'Traceback' not in result.stdout


def test_fused_and_plain_bottlenecks_learn_alike(tmp_path):
    """With frozen statistics, where the bottleneck is fused: the same losses for 20 iterations.

    All anchors and proposals are taken: rounding changes which of almost equal ones are drawn.
    """
    if reason := implementations()['cpu']:
        pytest.skip(reason)
    options = ['train_dataloader.dataset.indices=40', 'train_dataloader.batch_size=2',
               'test_dataloader.dataset.indices=2', 'train_cfg.max_epochs=1',
               'default_hooks.logger.interval=1', 'model.backbone.norm_eval=True',
               'model.train_cfg.rpn.sampler.num=4000', 'model.train_cfg.rcnn.sampler.num=400']
    losses = []
    for name in ('cpu', 'reference'):
        folder = tmp_path / name
        folder.mkdir()
        result = run(folder, '--min-ap', '-1', '--cfg-options', *options, SA_MMDET_OPS=name)
        assert result.returncode == 0, result.stdout[-3000:]
        losses.append([row['loss'] for row in logged(folder, 'vis_data/scalars.json')
                       if 'loss' in row])
    assert len(losses[0]) == 20
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1]  # not the same code


@pytest.mark.slow
def test_reaches_its_floor(tmp_path):
    result = run(tmp_path)
    assert result.returncode == 0, result.stdout[-3000:]
    metrics = logged(tmp_path, '*.json')[-1]
    assert metrics['coco/bbox_mAP'] >= 0.5
    assert metrics['coco/segm_mAP'] >= 0.5
