"""Run MMDetection's train.py and test.py, with added checks and support for CPU processes.

For ImageNet classifiers, MMPretrain's scripts run in the same way.
"""
import gc
import itertools
import os
import pickle
import runpy
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import mmcv.ops
import torch
import torch.distributed
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS, OPTIM_WRAPPERS
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from torch import nn

from ..checkpoint.read import file_refused, refusal, refuse_code
from ..environment import mmpretrain_problem, tools_of, torchvision_problem
from .validate.coco import coco_problems
from .validate.config import (
    NO_CHECKS,
    SUFFIXES,
    ConfigError,
    build_model,
    class_of,
    folder_problem,
    is_classifier,
    read_config,
    without_doubts,
)
from .validate.imagenet import imagenet_problems
from .validate.weights import initial_weights, loading_problem

SYNCHRONISED = nn.SyncBatchNorm, mmcv.ops.SyncBatchNorm
CHECKED = 'sa_mmdet.checked'  # key that the first process sets after its checks
RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}
# DistributedDataParallel refuses device ids for a model on the CPU, but MMEngine passes some.
CPU_WRAPPER_OPTIONS = [
    'model_wrapper_cfg.type=MMDistributedDataParallel', 'model_wrapper_cfg.device_ids=None',
    'model_wrapper_cfg.broadcast_buffers=False'
]


def run_tool(name: str, splits: tuple[str, ...]) -> None:
    """Run a script of the installed MMDetection or MMPretrain with this process's command line.

    One process checks the config, data and checkpoints first. ``--no-checks`` skips this.

    Args:
        name: 'train.py' or 'test.py'.
        splits: the splits that the script reads, of 'train', 'val' and 'test'.

    Raises:
        SystemExit: the config or a data set is missing; a checkpoint is missing, damaged or holds
            code; the processes cannot start on this machine; or the script itself exits.
    """
    checks = NO_CHECKS not in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != NO_CHECKS]
    package = 'mmpretrain' if _is_of_classifier(sys.argv[1:]) else 'mmdet'
    if package == 'mmpretrain' and (problem := mmpretrain_problem()):
        sys.exit(f'error: {problem}')
    if {'-h', '--help'} & set(sys.argv):
        print(f'{NO_CHECKS}: skip the checks of config, data and checkpoints\n')
    script = tools_of(package) / name
    if not script.is_file():
        sys.exit(f'error: {script} is missing: install {package} with `pip install` '
                 'or from its wheel, which both include its tools')
    tool = runpy.run_path(str(script), run_name='tool')
    args = tool['parse_args']()
    refuse_code()
    store = _check_once(args, splits) if checks else None  # other processes may still query it
    if args.launcher != 'none' and not torch.cuda.is_available():
        _start_cpu_processes(args)
    try:
        tool['main']()
    except pickle.UnpicklingError as error:  # from a file that the script downloaded
        sys.exit(f'error: {refusal(error, file_refused(error))}')
    except KeyboardInterrupt:
        sys.exit('interrupted' + (': run the same command with --resume to continue from '
                                  'the last checkpoint' if 'train' in splits else ''))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # gloo's threads can abort the process if they still run when the interpreter exits. They
        # end when the last model that holds the group is collected, and models are in cycles.
        gc.collect()
        torch.distributed.destroy_process_group()
    del store


def _is_of_classifier(arguments: list[str]) -> bool:
    """Return whether a command line names one of MMPretrain's configs."""
    for argument in arguments:
        if argument.endswith(SUFFIXES) and Path(argument).is_file():
            try:
                if is_classifier(Config.fromfile(argument)):
                    return True
            except Exception:  # the checks report what is wrong with it
                continue
    return False


def _check_once(args: Namespace, splits: tuple[str, ...]) -> object | None:
    """Check in the first process. torchrun's others wait for it, srun's and mpirun's don't.

    Returns:
        The store that the processes share; keep it alive while one of them may be waiting.
    """
    rank = os.environ.get(RANKS.get(args.launcher, ''))
    if args.launcher != 'pytorch' or rank is None:
        if not int(rank or 0):
            _check(args, splits)
        return None
    store, *_ = next(torch.distributed.rendezvous('env://'))
    if int(rank):
        store.wait([CHECKED])
    else:
        _check(args, splits)
        store.set(CHECKED, '')
    return store


def _check(args: Namespace, splits: tuple[str, ...]) -> None:
    """Exit with a message if the config, data or checkpoints of a command line are wrong."""
    if getattr(args, 'no_validate', False):  # an option of MMPretrain's train.py
        splits = tuple(split for split in splits if split != 'val')
    try:
        config = read_config(Path(args.config).absolute(), args.cfg_options)
        model = build_model(config, scope='mmengine')  # MMEngine's default
    except ConfigError as error:
        sys.exit(f'error: {error}')
    if problems := without_doubts(itertools.chain(
            _option_problems(args, config, model), _problems(args, config, splits))):
        sys.exit('error: ' + '\n'.join(problems))


def _option_problems(args: Namespace, config: Config, model: nn.Module) -> Iterator[str]:
    kind = (config.get('optim_wrapper') or {}).get('type')
    amp = ('--amp' if getattr(args, 'amp', False) else 'optim_wrapper.type=AmpOptimWrapper'
           if hasattr(args, 'amp') and class_of(kind, OPTIM_WRAPPERS) is AmpOptimWrapper else None)
    if amp and (problem := _amp_problem()):
        yield f'{amp}: {problem}. Leave it out, or run on a machine with a GPU'
    merging = class_of((config.get('tta_model') or {}).get('type', 'DetTTAModel'), MODELS)
    if getattr(args, 'tta', False) and merging is DetTTAModel and getattr(
            model, 'with_mask', False):
        yield (f'--tta: {type(model).__name__} predicts masks, which DetTTAModel cannot merge. '
               'Leave it out, or give the config of a detector without masks')


def _amp_problem() -> str | None:
    """Return why MMEngine cannot train in mixed precision here, or None."""
    try:
        AmpOptimWrapper(optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.))
    except AssertionError as error:
        return str(error)
    return None


def _problems(args: Namespace, config: Config, splits: tuple[str, ...]) -> Iterator[str]:
    folder = args.work_dir or config.get('work_dir') or 'work_dirs'
    if problem := folder_problem(Path(folder)):
        yield f'--work-dir {folder}: {problem}. Choose another folder'
    initial = list(initial_weights(config.model)) if 'train' in splits else []
    for source in [getattr(args, 'checkpoint', None), getattr(args, 'resume', None),
                   config.get('load_from'), *initial]:
        if problem := loading_problem(source):
            yield problem
    yield from (imagenet_problems if is_classifier(config) else coco_problems)(config, splits)
    if any(source.startswith('torchvision://') for source in initial) and (
            problem := torchvision_problem()):
        yield problem
    if args.launcher != 'none' and not torch.cuda.is_available():
        yield from _norm_problems(config)


def _norm_problems(config: Config) -> Iterator[str]:
    synchronised = list(_synchronised_norms(config.model, 'model'))
    if config.get('sync_bn'):
        synchronised.append('sync_bn=None')
    if synchronised:
        yield ('synchronised batch norm needs GPUs, and this machine has none. On CPUs, use '
               f'ordinary batch norm: --cfg-options {" ".join(synchronised)}')


def _synchronised_norms(node, path: str) -> Iterator[str]:
    """Yield the options that make a model's synchronised batch norms ordinary ones."""
    if isinstance(node, dict):
        kind = class_of(node.get('type'), MODELS)
        if isinstance(kind, type) and issubclass(kind, SYNCHRONISED):
            yield f'{path}.type=BN'
        for key, value in node.items():
            yield from _synchronised_norms(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _synchronised_norms(value, f'{path}.{index}')


def _start_cpu_processes(args: Namespace) -> None:
    """Join the process group over gloo, as MMEngine itself needs a GPU for each process."""
    if args.launcher != 'pytorch':
        sys.exit(f'error: --launcher {args.launcher} needs a GPU on every node, and this node '
                 'has none. On CPUs, use tools/dist_train.sh and tools/dist_test.sh.')
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    torch.distributed.init_process_group('gloo')
    sys.argv += [
        '--cfg-options', *CPU_WRAPPER_OPTIONS,
        f'model_wrapper_cfg.find_unused_parameters={config.get("find_unused_parameters", False)}'
    ]
