"""A training that is killed with SIGKILL, over and over, and resumed ends as if it had not been."""
import multiprocessing
import os
import random
import sys
import time
from itertools import cycle
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from sa_mmdet.apps.datasets.shapes import generate_shapes
from sa_mmdet.apps.train import run_tool
from sa_mmdet.checkpoint.read import is_whole, last_whole, load_weights

QUICKSTART = Path(__file__).parents[1] / 'configs/quickstart/mask-rcnn_sa-r50_fpn_shapes.py'
LIMIT = 300  # seconds, for anything that is waited for

# Imports everything once; each training is a fork of a process that has computed nothing yet.
forkserver = multiprocessing.get_context('forkserver')
forkserver.set_forkserver_preload(
    ['sa_mmdet.apps.train', *(f'mmdet.{name}' for name in ('datasets', 'engine', 'evaluation'))])


def narrow_quickstart(folder: Path, epochs: int, **settings) -> Path:
    """The config of the quickstart's detector at half its width, on eight images."""
    generate_shapes(folder / 'shapes', train=8, val=2)
    config = Config.fromfile(QUICKSTART)
    config.model.backbone.base_channels = 32
    config.model.neck.in_channels = [128, 256, 512, 1024]
    config.train_dataloader.dataset.data_root = f'{folder}/shapes/'
    for split in ('val', 'test'):
        config[f'{split}_dataloader'].dataset.data_root = f'{folder}/shapes/'
        config[f'{split}_evaluator'].ann_file = f'{folder}/shapes/annotations/val.json'
    config.train_cfg.update(max_epochs=epochs, val_begin=epochs + 1)
    config.default_hooks.checkpoint.max_keep_ckpts = 1
    config.custom_hooks = [dict(type='EpochSeedHook')]
    config.merge_from_dict(settings)
    config.dump(folder / 'config.py')
    return folder / 'config.py'


def train(config: Path, work_dir: Path, begun) -> None:
    """tools/train.py, in a process of its own."""
    begun.set()
    work_dir.mkdir(exist_ok=True)
    log = os.open(work_dir / 'output.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    sys.argv = ['train.py', str(config), '--work-dir', str(work_dir), '--resume']
    run_tool('train.py', ('train', 'val'))


class Training:
    """A training in the background, and what is seen of it in its folder."""

    def __init__(self, config: Path, work_dir: Path):
        self.folder = work_dir
        begun = forkserver.Event()
        self.process = forkserver.Process(target=train, args=(config, work_dir, begun))
        self.process.start()
        self.started = time.monotonic()
        assert self.wait_for(begun.is_set)  # the first one waits for all to be imported
        self.started = time.monotonic()

    def wait_for(self, condition) -> bool:
        """Wait until a condition holds; False if the training ended before."""
        while not condition():
            if not self.process.is_alive():
                return False
            assert time.monotonic() < self.started + LIMIT
            time.sleep(0.0005)
        return True

    def is_writing(self) -> bool:
        return any(self.folder.glob('.epoch_*'))

    def ends_well(self) -> bool:
        self.process.join(LIMIT)
        return self.process.exitcode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.join(LIMIT)


def weights(work_dir: Path) -> tuple[int, dict]:
    """Epoch and weights of a training's last checkpoint."""
    epoch, path = last_whole(work_dir)
    return epoch, load_weights(path)['state_dict']


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def kill_and_resume(config: Path, work_dir: Path, kills: int, seconds: float) -> int:
    """Kill a training at random moments, every other time while it writes a checkpoint.

    Args:
        config: of the training.
        work_dir: its folder, new.
        kills: how often.
        seconds: the latest moment after a start.

    Returns:
        How many kills left an unfinished file.
    """
    rng = random.Random(0)
    unfinished, epoch, moments = 0, 0, cycle(('any', 'writing'))
    for _, moment in zip(range(kills), moments, strict=False):
        training = Training(config, work_dir)
        if moment == 'writing':
            alive = training.wait_for(training.is_writing)
            time.sleep(rng.uniform(0, 0.02))
        else:
            # at the latest after an epoch, so that there is one left for every kill
            end = time.monotonic() + rng.uniform(0, seconds)
            done = work_dir / f'epoch_{epoch + 1}.pth'
            alive = training.wait_for(
                lambda end=end, done=done: time.monotonic() > end or done.exists())
        assert alive, (work_dir / 'output.log').read_text()[-3000:]
        training.kill()
        unfinished += training.is_writing()
        checkpoints = list(work_dir.glob('epoch_*.pth'))
        assert all(map(is_whole, checkpoints))
        reached, _ = last_whole(work_dir) or (0, None)
        assert reached >= epoch  # nothing is lost that was there, with one checkpoint kept
        epoch = reached
    assert Training(config, work_dir).ends_well(), (work_dir / 'output.log').read_text()[-3000:]
    assert not list(work_dir.glob('.epoch_*'))
    return unfinished


@pytest.mark.parametrize(('kills', 'epochs'), [
    pytest.param(20, 24, marks=pytest.mark.slow), (4, 6)])
def test_killed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, kills, epochs):
    config = narrow_quickstart(tmp_path, epochs)
    whole = Training(config, tmp_path / 'whole')
    assert whole.wait_for((tmp_path / 'whole/epoch_1.pth').exists)
    seconds = time.monotonic() - whole.started
    assert whole.ends_well()

    unfinished = kill_and_resume(config, tmp_path / 'killed', kills, seconds)
    assert unfinished > 0
    (epoch, expected), (last, found) = weights(tmp_path / 'whole'), weights(tmp_path / 'killed')
    assert epoch == last == epochs
    assert equal(expected, found)
    print(f'{kills} kills survived, {unfinished} of them with an unfinished checkpoint')


@pytest.mark.slow
def test_without_epoch_seeds_a_resumed_training_draws_anew(tmp_path):
    """MMEngine does not keep the state of the generators: it seeds them when a process starts."""
    config = narrow_quickstart(tmp_path, epochs=3, custom_hooks=[])
    assert Training(config, tmp_path / 'whole').ends_well()
    killed = Training(config, tmp_path / 'killed')
    assert killed.wait_for((tmp_path / 'killed/last_checkpoint').exists)
    killed.kill()
    assert Training(config, tmp_path / 'killed').ends_well()
    assert not equal(weights(tmp_path / 'whole')[1], weights(tmp_path / 'killed')[1])
