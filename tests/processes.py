"""Processes that work as one, over gloo on the CPU, and those that are killed."""
import multiprocessing
import subprocess
import time

import torch
import torch.distributed
import torch.multiprocessing

from sa_mmdet.apps.paper.processes import locked
from sa_mmdet.apps.paper.runs import ReproduceError

WORLD_SIZE = 2

# What all processes import is imported once, in a server from which they are forked.
multiprocessing.set_forkserver_preload(['sa_mmdet.models'])


def in_two_processes(folder, function, *args) -> list:
    """What ``function(rank, *args)`` returns in each of two processes of one group.

    Args:
        folder: an empty one, for the processes to meet in.
        function: of a module, so that it can be found there.
    """
    torch.multiprocessing.start_processes(
        _work, (str(folder), function, args), nprocs=WORLD_SIZE, start_method='forkserver')
    return [torch.load(folder / f'{rank}.pth') for rank in range(WORLD_SIZE)]


def _work(rank, folder, function, args):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD_SIZE)
    torch.save(function(rank, *args), f'{folder}/{rank}.pth')
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def output_of(command):
    """What a command prints, which has to succeed."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def wait_for(path, process, seconds=240):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()[-5000:]
        assert time.monotonic() < end, f'{path} did not appear'
        time.sleep(0.05)


def wait_until_free(work_dir, seconds=60):
    """Wait until the children of a killed process, which the kernel ends, have let go."""
    end = time.monotonic() + seconds
    while True:
        try:
            with locked(work_dir):
                return
        except ReproduceError:
            assert time.monotonic() < end
            time.sleep(0.05)
