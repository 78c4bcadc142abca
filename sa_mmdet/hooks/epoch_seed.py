import random
from functools import partial

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Derive the randomness of every epoch from the run's seed and the epoch's number.

    MMEngine seeds once, when a run starts. A resumed run draws the augmentations and samples of
    its first epoch again. With this hook, an interrupted run draws what an uninterrupted run does.

    Raises:
        ValueError: the workers of the training data are persistent, and would keep their seeds.
    """

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        if loader.num_workers and loader.persistent_workers:
            raise ValueError('EpochSeedHook needs workers that start again with every epoch: set '
                             'train_dataloader.persistent_workers=False')
        loader.worker_init_fn = partial(_seed_worker, rank=get_rank())

    def before_train_epoch(self, runner: Runner) -> None:
        # The prime keeps seeds 0, 1, 2, ... from sharing an epoch's randomness. They only share the
        # order of the images, as DefaultSampler takes the sum of seed and epoch.
        set_random_seed((runner.seed * 10007 + runner.epoch) % 2**32)


def _seed_worker(worker_id: int, rank: int) -> None:
    """Seed a worker's generators from the seed that the main process drew for this epoch."""
    seed = (torch.initial_seed() + 1009 * rank) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
