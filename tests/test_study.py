"""tools/reproduce.py --study from the command line, on a few of its images."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from processes import output_of, wait_for, wait_until_free
from sa_mmdet.apps.datasets.textured import textured_shapes
from sa_mmdet.apps.paper.runs import Settings
from sa_mmdet.apps.study.runs import ROWS, StudyRun
from sa_mmdet.checkpoint import read_checkpoint

pytestmark = pytest.mark.xdist_group('reproduce')

TOOL = Path(__file__).parents[1] / 'tools/reproduce.py'
PLAIN, UNCONVERTED = 'mask-rcnn_r50', 'mask-rcnn_sa-r50_unconverted'
OPTIONS = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=2', 'val_dataloader.batch_size=2',
           'test_dataloader.batch_size=2', 'model.test_cfg.rcnn.score_thr=0.',
           'model.test_cfg.rcnn.max_per_img=5']


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    """Four images to train on and two to test on, which say that they are the whole."""
    root = tmp_path_factory.mktemp('data') / 'shapes'
    textured_shapes(train=4, val=2).write(root)
    (root / 'settings.json').write_text(json.dumps(textured_shapes().settings))
    return root


def command(work_dir, data_root, *args):
    return [sys.executable, str(TOOL), '--study', 'shapes', '--seeds', '1', '--gpus', '0',
            '--work-dir', str(work_dir), '--data-root', str(data_root), '--rows', UNCONVERTED,
            *args, '--cfg-options', *OPTIONS]


def run(work_dir, data_root):
    return output_of(command(work_dir, data_root))


@pytest.fixture(scope='module')
def finished(tmp_path_factory, data_root):
    """The work dir of a study that was killed in its last validation, and its output then."""
    work_dir = tmp_path_factory.mktemp('study')
    killed = subprocess.Popen(command(work_dir, data_root), text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, start_new_session=True)
    wait_for(work_dir / f'{UNCONVERTED}/seed0/epoch_1.pth', killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    wait_until_free(work_dir)
    return work_dir, run(work_dir, data_root)


def content_of(work_dir):
    """The report without what differs from time to time."""
    content = json.loads((work_dir / 'report/report.json').read_text())
    for each in content['runs']:
        del each['hours']
    return content


def test_killed_and_resumed_it_is_the_same(finished, tmp_path, data_root):
    work_dir, output = finished
    assert f'=== [1/2] {PLAIN} seed 0' not in output
    assert '2 of 2 runs are finished' in output
    run(tmp_path, data_root)
    content = content_of(tmp_path)
    assert content == content_of(work_dir)
    assert [each['row'] for each in content['runs']] == [PLAIN, UNCONVERTED]
    curve = content['curves'][UNCONVERTED]['0']['bbox']
    assert list(curve) == ['0', '1']
    weights = [read_checkpoint(folder / UNCONVERTED / 'seed0/epoch_1.pth')['state_dict']
               for folder in (work_dir, tmp_path)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_all_rows_see_the_same_images_in_the_same_way(tmp_path, data_root):
    """In their order, flipped or not, whatever random numbers the networks draw beside them."""
    settings = Settings(
        root=TOOL.parents[1], work_dir=tmp_path, data_root=data_root, cfg_options={
            'train_cfg.max_epochs': 3, 'train_dataloader.batch_size': 2,
            'model.backbone.frozen_stages': 4})
    seen = {}
    for name in (PLAIN, 'mask-rcnn_cbam-r50'):
        study_run = StudyRun(ROWS[name], 0, settings)
        study_run.make_start()
        config = study_run.config
        config.work_dir, config.val_cfg, config.val_dataloader, config.val_evaluator = (
            str(study_run.folder), None, None, None)
        runner = Runner.from_cfg(config)
        seen[name] = []
        runner.register_hook(Batches(seen[name]))
        runner.train()
    batches = seen[PLAIN]
    assert batches == seen['mask-rcnn_cbam-r50']
    assert len({tuple(id_ for id_, *_ in batch) for batch in batches}) > 2
    assert {flip for batch in batches for _, flip, _ in batch} == {False, True}


class Batches(Hook):
    """Keeps which images are in each batch, whether flipped, and what is in their pixels."""

    def __init__(self, batches):
        self.batches = batches

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append([
            (sample.img_id, sample.flip, int(image.long().sum())) for image, sample in zip(
                data_batch['inputs'], data_batch['data_samples'], strict=True)])


def test_check(finished, run_tool, tmp_path):
    work_dir = shutil.copytree(
        finished[0], tmp_path / 'copy', ignore=shutil.ignore_patterns('*.pth'))
    code, output = run_tool('reproduce', '--check', '--work-dir', work_dir)
    assert code == 0
    assert f'{UNCONVERTED} seed 0: every figure is as reported' in output
    assert 'report: matches the files of the runs' in output
    path = work_dir / 'report/report.json'
    path.write_text(path.read_text().replace('"epochs": 1', '"epochs": 2'))
    code, output = run_tool('reproduce', '--check', '--work-dir', work_dir)
    assert code == 1
    assert 'report.json does not match the files of the runs' in output
    code, output = run_tool('reproduce', '--report', '--work-dir', work_dir)
    assert run_tool('reproduce', '--check', '--work-dir', work_dir)[0] == 0


def test_dry_run_draws_nothing(tmp_path, run_tool):
    code, output = run_tool('reproduce', *command(tmp_path / 'w', tmp_path / 'd', '--dry-run')[2:])
    assert code == 0
    assert f'{UNCONVERTED} seed 0' in output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path, run_tool):
    (tmp_path / 'd').mkdir()
    (tmp_path / 'd/notes.txt').touch()
    code, output = run_tool('reproduce', *command(tmp_path / 'w', tmp_path / 'd')[2:])
    assert code not in (0, None)
    assert 'd exists, but is not the data set of textured shapes' in output
    assert 'choose another folder' in output


def test_nowhere_to_draw_is_found_first_and_the_work_dir_stays_free(tmp_path, run_tool):
    (tmp_path / 'file').touch()
    code, output = run_tool('reproduce', *command(tmp_path / 'w', tmp_path / 'file/d')[2:])
    assert code not in (0, None)
    assert f'{tmp_path / "file"} is not a folder: choose another --data-root' in output
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(('args', 'message'), [
    (['--study', 'shapes', '--table', '3'], 'remove --table'),
    (['--study', 'shapes', '--eval-only', 'mask-rcnn_r50=x.pth'], 'the study tests what it trains'),
    (['--study', 'shapes', '--init', 'imagenet=x.pth'], 'the study start from random weights'),
    (['--study', 'shapes', '--rows', 'mask-rcnn_sa-r101'], 'did you mean mask-rcnn_sa-r50'),
    (['--study', 'squares'], "invalid choice: 'squares'"),
], ids=str)
def test_refusals(args, message, tmp_path, monkeypatch, run_tool):
    monkeypatch.chdir(tmp_path)
    code, output = run_tool('reproduce', *args)
    assert code not in (0, None)
    assert message in output
    assert list(tmp_path.iterdir()) == []
