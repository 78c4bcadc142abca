import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICKSTART = [sys.executable, str(ROOT / 'tools/quickstart.py')]
FEW = ['train_dataloader.dataset.indices=8', 'test_dataloader.dataset.indices=4',
       'train_cfg.max_epochs=1']


def run(cwd, *args):
    return subprocess.run([*QUICKSTART, *args], cwd=cwd, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)


def test_two_iterations_are_under_the_floor_and_a_second_run_goes_on(tmp_path):
    first = run(tmp_path, '--cfg-options', *FEW)
    assert first.returncode == 1, first.stdout
    assert 'AP is under the floor of 0.5' in first.stdout
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
    result = run(tmp_path)
    assert result.returncode == 1
    assert result.stdout.endswith('remove it, or choose another folder\n')
    assert 'error: data/shapes exists and is not the shapes data set' in result.stdout
    assert 'Traceback' not in result.stdout


@pytest.mark.slow
def test_reaches_its_floor(tmp_path):
    result = run(tmp_path)
    assert result.returncode == 0, result.stdout[-3000:]
    scalars, = (tmp_path / 'work_dirs/quickstart').glob('*/*.json')
    metrics = json.loads(scalars.read_text().splitlines()[-1])
    assert metrics['coco/bbox_mAP'] >= 0.5
    assert metrics['coco/segm_mAP'] >= 0.5
