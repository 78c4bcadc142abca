"""tools/reproduce.py on Tables 1 and 2 from the command line, with MMPretrain."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from image_folder import CONFIGS, as_arguments, config_of, small_options
from sa_mmdet.apps.paper.weights import identify_backbone
from sa_mmdet.checkpoint import read_checkpoint

pytestmark = pytest.mark.xdist_group('reproduce_imagenet')

ROW = 'sa-resnet50_no-shuffle'


def arguments(work_dir, images, *more, epochs=2):
    return ['--table', '1', '2', '--rows', ROW, '--work-dir', work_dir, '--data-root', images,
            '--gpus', '0', *more, *as_arguments(small_options(epochs))]


@pytest.fixture(scope='module')
def uninterrupted(tool, images, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('uninterrupted')
    output = tool('reproduce.py', *arguments(work_dir, images))
    assert '1 of 1 runs are finished' in output
    return work_dir


def result_of(work_dir):
    return json.loads((work_dir / ROW / 'seed0/result.json').read_text())


def test_report(uninterrupted, images):
    report = uninterrupted / 'report'
    assert {path.name for path in report.iterdir()} == {
        'report.md', 'report.csv', 'report.json', 'table1.png', 'table2.png', 'curves'}
    assert [path.name for path in (report / 'curves').iterdir()] == [f'{ROW}.png']
    result = result_of(uninterrupted)
    accuracy = result['metrics']['accuracy']
    markdown = (report / 'report.md').read_text()
    assert 'Evaluated on **6 images of 6 classes in imagenet, NOT ImageNet val**' in markdown
    assert f'| w/o_shuffle | 4.125 (4.125) | {100 * accuracy["top1"]:.3f} | ' in markdown
    assert (result['start'], result['epochs'], result['device']) == ('random', 2, 'CPU')
    assert 'mmpretrain' in result['versions']
    cells = json.loads((report / 'report.json').read_text())['cells']
    assert len(cells) == (5 + 12) * 2
    assert [(cell['table'], cell['metric']) for cell in cells if cell['status'] == 'measured'] == [
        (1, 'top1'), (1, 'top5')]


def test_killed_in_the_middle_it_ends_with_the_same_weights(
        uninterrupted, images, environment_of_mmpretrain, tool, tmp_path):
    command = [sys.executable, str(CONFIGS.parent / 'tools/reproduce.py'),
               *map(str, arguments(tmp_path, images))]
    killed = subprocess.Popen(command, env=environment_of_mmpretrain, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while not (tmp_path / ROW / 'seed0/last_checkpoint').exists():
        assert killed.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / ROW / 'seed0/epoch_2.pth').exists()
    while time.monotonic() < end:  # the child, which the kernel ends, has to let go of the work dir
        done = subprocess.run(command, env=environment_of_mmpretrain, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if 'is in use by another' not in done.stdout:
            break
    assert done.returncode == 0, done.stdout[-5000:]
    assert 'resumed epoch: 1' in done.stdout
    weights = [read_checkpoint(work_dir / ROW / 'seed0/epoch_2.pth')['state_dict']
               for work_dir in (uninterrupted, tmp_path)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert result_of(uninterrupted)['predictions'] == result_of(tmp_path)['predictions']


def test_check(uninterrupted, tool):
    check = '--check', '--work-dir', uninterrupted
    assert f'{ROW} seed 0: every figure is as reported' in tool('reproduce.py', *check)
    path = uninterrupted / ROW / 'seed0/predictions.json'
    original = path.read_text()
    predictions = json.loads(original)
    predictions[0]['classes'].reverse()
    path.write_text(json.dumps(predictions))
    output = tool('reproduce.py', *check, status=1)
    path.write_text(original)
    assert 'was changed after it was evaluated' in output


def test_checkpoint_is_known_for_what_it_is(uninterrupted):
    """The ablation, which has the names of shuffle attention, does not start its detectors."""
    key, start = identify_backbone(uninterrupted / ROW / 'seed0/epoch_2.pth')
    assert key == (50, 'SA with unshuffled')
    assert start['init_cfg']['prefix'] == 'backbone.'


def test_classifier_can_be_tested_alone(uninterrupted, images, tool, tmp_path):
    checkpoint = uninterrupted / ROW / 'seed0/epoch_2.pth'
    given = ['--table', '1', '--work-dir', tmp_path, '--data-root', images, '--gpus', '0',
             '--eval-only', f'{ROW}={checkpoint}', *as_arguments(small_options(2))]
    tool('reproduce.py', *given)
    tested = result_of(tmp_path)
    assert tested['metrics'] == result_of(uninterrupted)['metrics']
    assert not tested['trained']
    given[given.index('--eval-only') + 1] = f'sa-resnet50={checkpoint}'
    given[3] = tmp_path / 'other'
    output = tool('reproduce.py', *given, status=1)
    assert 'not in the model (backbone.layer1.0.sa.unshuffled' in output


def test_training_images_are_not_needed_to_test(uninterrupted, images, tool, tmp_path):
    (tmp_path / 'imagenet').mkdir()
    (tmp_path / 'imagenet/val').symlink_to(images / 'val')
    checkpoint = uninterrupted / ROW / 'seed0/epoch_2.pth'
    output = tool('reproduce.py', '--table', '1', '--work-dir', tmp_path / 'work', '--data-root',
                  tmp_path / 'imagenet', '--gpus', '0', '--dry-run', '--eval-only',
                  f'{ROW}={checkpoint}', *as_arguments(small_options(2)))
    assert 'data set: ok' in output


def test_wrong_data_is_refused_before_anything_starts(images, tool, tmp_path):
    options = small_options()
    del options['model.head.num_classes']
    output = tool('train.py', config_of('sa-resnet50'), '--work-dir', tmp_path / 'work',
                  *as_arguments(options | {
                      f'{split}_dataloader.dataset.data_root': images
                      for split in ('train', 'val')}), status=1)
    assert ('error: model.head.num_classes=1000, but the data sets have 6 classes: give '
            '--cfg-options model.head.num_classes=6') in output
    output = tool('train.py', config_of('sa-resnet50'), cwd=tmp_path, status=1)
    assert f'error: {tmp_path}/data/imagenet/train does not exist: expected the images' in output
    output = tool('train.py', config_of('sa-resnet50'), '--no-validate', cwd=tmp_path, status=1)
    assert 'imagenet/train does not exist' in output
    assert 'imagenet/val does not exist' not in output
    output = tool('reproduce.py', '--table', '2', cwd=tmp_path, status=1)
    assert 'data set: ' in output
    assert 'data/imagenet/val does not exist' in output
    assert list(tmp_path.iterdir()) == []
