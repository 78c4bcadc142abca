"""The hook on a tiny training, crashed at the worst moments."""
import itertools
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.fileio import LocalBackend, register_backend
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import sa_mmdet  # noqa: F401
from sa_mmdet.checkpoint.read import is_whole, load_weights

RUNS = itertools.count()  # MMEngine keeps what belongs to an experiment's name in the process


class Line(BaseModel):

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, inputs, mode):
        if mode == 'loss':
            return dict(loss=self.line(torch.stack(inputs)).square().sum())
        return inputs


class Epochs(BaseMetric):
    """The better, the later; MMEngine takes the mean over batches of what is processed."""

    count = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        type(self).count += 1
        return dict(score=type(self).count)


def runner(folder: Path, epochs: int = 3, resume: bool = False, **checkpoint) -> Runner:
    loader = dict(dataset=[dict(inputs=torch.ones(1))] * 2, batch_size=1,
                  sampler=dict(type='DefaultSampler', shuffle=False))
    return Runner(
        Line(), str(folder), train_dataloader=loader, val_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs), val_cfg=dict(),
        val_evaluator=Evaluator(Epochs()),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(type='AtomicCheckpointHook', interval=1, **checkpoint)),
        resume=resume, default_scope='mmdet', cfg=Config(dict(work_dir=str(folder))),
        experiment_name=f'training {next(RUNS)}', log_level='WARNING')


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob('*.pth')}


class Crash(Exception):
    pass


def crash_when(monkeypatch, name: str) -> None:
    """End the process, as far as it can be done here, when a file of this name has been written."""
    replace = os.replace

    def crashing_replace(source, target):
        if Path(target).name == name:
            raise Crash
        replace(source, target)
    monkeypatch.setattr(os, 'replace', crashing_replace)


def test_keeps_as_many_as_asked(tmp_path):
    runner(tmp_path, max_keep_ckpts=2).train()
    assert names(tmp_path) == {'epoch_2.pth', 'epoch_3.pth'}
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')
    assert not list(tmp_path.glob('.*'))


def test_the_last_is_removed_after_the_new_one_is_written(tmp_path, monkeypatch):
    crash_when(monkeypatch, 'epoch_2.pth')
    with pytest.raises(Crash):
        runner(tmp_path, max_keep_ckpts=1).train()
    assert names(tmp_path) == {'epoch_1.pth'}
    monkeypatch.undo()
    resumed = runner(tmp_path, resume=True, max_keep_ckpts=1)
    resumed.train()
    assert resumed.epoch == 3
    assert names(tmp_path) == {'epoch_3.pth'}


def test_the_best_is_removed_after_a_better_one_is_written(tmp_path, monkeypatch):
    crash_when(monkeypatch, 'best_score_epoch_2.pth')
    with pytest.raises(Crash):
        runner(tmp_path, save_best='score', rule='greater').train()
    assert is_whole(tmp_path / 'best_score_epoch_1.pth')
    monkeypatch.undo()
    runner(tmp_path, resume=True, save_best='score', rule='greater').train()
    assert {name for name in names(tmp_path) if 'best' in name} == {'best_score_epoch_3.pth'}


@pytest.mark.parametrize('note', [None, '', 'elsewhere/epoch_3.pth', 'epoch_3.pth'])
def test_goes_on_from_the_last_whole_one_whatever_the_note_says(tmp_path, note):
    """The note is missing, was emptied, is of another place, or names a file cut in the middle."""
    runner(tmp_path).train()
    last = tmp_path / 'epoch_3.pth'
    last.write_bytes(last.read_bytes()[:-100])
    (tmp_path / 'last_checkpoint').unlink()
    if note is not None:
        (tmp_path / 'last_checkpoint').write_text(note and str(tmp_path / note))
    (tmp_path / '.epoch_4.pth.abc.part').touch()
    resumed = runner(tmp_path, epochs=4, resume=True)
    resumed.call_hook('before_run')
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_2.pth')
    runner(tmp_path, epochs=4, resume=True).train()
    assert all(map(is_whole, tmp_path.glob('*.pth')))
    assert not list(tmp_path.glob('.*'))


def test_without_any_whole_one_it_starts_anew(tmp_path):
    (tmp_path / 'epoch_1.pth').touch()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    training = runner(tmp_path, epochs=1, resume=True)
    training.train()
    assert load_weights(tmp_path / 'epoch_1.pth')['meta']['iter'] == 2


def test_a_note_that_is_right_stays(tmp_path):
    """Also where a later checkpoint is whole: the user may have gone back on purpose."""
    runner(tmp_path).train()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    training = runner(tmp_path, resume=True)
    training.call_hook('before_run')
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_1.pth')


def test_another_storage_is_left_alone(tmp_path):
    class Remote(LocalBackend):
        pass

    register_backend('remote', Remote, force=True)
    training = runner(tmp_path, epochs=1, backend_args=dict(backend='remote'))
    training.train()
    hook, = (hook for hook in training.hooks if type(hook).__name__ == 'AtomicCheckpointHook')
    assert isinstance(hook.file_backend, Remote)
    assert hook.backend_args == dict(backend='remote')
    assert names(tmp_path) == {'epoch_1.pth'}
