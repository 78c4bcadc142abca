import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sa_mmdet.hooks import EpochSeedHook


class Draws(Dataset):
    """Items that are what the three generators draw in the process that loads them."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()]).double()


def epochs(workers, seed, first, last):
    """What is drawn in some epochs by a training that begins with the first of them."""
    # without a time limit it waits for ever for what a worker could not send: on a full disk
    loader = DataLoader(Draws(), num_workers=workers, timeout=60 if workers else 0)
    runner = SimpleNamespace(train_dataloader=loader, seed=seed, epoch=first)
    hook = EpochSeedHook()
    torch.rand(3)
    hook.before_train(runner)
    drawn = []
    for runner.epoch in range(first, last):
        hook.before_train_epoch(runner)
        drawn.append(torch.cat([*loader, torch.rand(1, 3).double()]))
    return drawn


@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_training_draws_what_an_uninterrupted_one_does(workers):
    whole = epochs(workers, seed=0, first=0, last=3)
    resumed = epochs(workers, seed=0, first=2, last=3)
    assert torch.equal(whole[2], resumed[0])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], epochs(workers, seed=1, first=0, last=1)[0])


def test_workers_of_all_ranks_draw_differently(monkeypatch):
    alone = epochs(1, seed=0, first=0, last=1)
    monkeypatch.setattr('sa_mmdet.hooks.epoch_seed.get_rank', lambda: 1)
    assert not torch.equal(alone[0][:4], epochs(1, seed=0, first=0, last=1)[0][:4])


def test_workers_that_outlive_an_epoch_are_refused():
    loader = DataLoader(Draws(), num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match='persistent_workers=False'):
        EpochSeedHook().before_train(SimpleNamespace(train_dataloader=loader))
