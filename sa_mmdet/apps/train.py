"""Run MMDetection's own train.py and test.py, with the checks and the CPU processes they lack.

MMPretrain's are run for the classifiers of ImageNet, in the same way.
"""
import gc
import pickle
import runpy
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed
from mmengine.config import Config

from ..checkpoint.read import refusal, refuse_code
from ..environment import mmpretrain_problem
from .preflight import checked_config
from .validate.config import SUFFIXES, Overrides, is_classifier

# DistributedDataParallel refuses device ids for a model on the CPU; MMEngine always gives some.
CPU_WRAPPER_OPTIONS = [
    'model_wrapper_cfg.type=MMDistributedDataParallel', 'model_wrapper_cfg.device_ids=None',
    'model_wrapper_cfg.broadcast_buffers=False'
]


def tools_of(package: str) -> Path:
    """The folder with the scripts of an installed 'mmdet' or 'mmpretrain'."""
    return Path(find_spec(package).origin).parent / '.mim' / 'tools'


def run_tool(name: str, splits: tuple[str, ...]) -> None:
    """Run a script of the installed MMDetection, or MMPretrain, with this process's command line.

    Args:
        name: 'train.py' or 'test.py'.
        splits: the data sets that the script reads, of 'train', 'val' and 'test'.

    Raises:
        SystemExit: the configuration or a data set is missing, a checkpoint is missing, damaged or
            holds code, the processes cannot be started on this machine, or the script itself exits.
    """
    package = 'mmpretrain' if _is_of_classifier(sys.argv[1:]) else 'mmdet'
    if package == 'mmpretrain' and (problem := mmpretrain_problem()):
        sys.exit(f'error: {problem}')
    script = tools_of(package) / name
    if not script.is_file():
        sys.exit(f'error: {script} is missing: install {package} from its wheel or by '
                 '`pip install`, which put its tools there')
    tool = runpy.run_path(str(script), run_name='tool')
    # the script's own --cfg-options, which would end in a traceback where there is no '='
    tool['parse_args'].__globals__['DictAction'] = Overrides
    args = tool['parse_args']()
    refuse_code()
    config = checked_config(args, splits)
    if args.launcher != 'none' and not torch.cuda.is_available():
        _start_cpu_processes(args.launcher, config)
    try:
        tool['main']()
    except pickle.UnpicklingError as error:  # of a file that was downloaded meanwhile
        sys.exit(f'error: {refusal(error, "a checkpoint")}')
    except KeyboardInterrupt:
        sys.exit('interrupted' + (': the same command with --resume goes on from the last '
                                  'checkpoint' if 'train' in splits else ''))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # gloo's threads, still running when the interpreter ends, can abort the process. They end
        # with the last object that holds the group: a model, which is part of reference cycles.
        gc.collect()
        torch.distributed.destroy_process_group()


def _is_of_classifier(arguments: list[str]) -> bool:
    """Whether a config in a command line is one of MMPretrain's."""
    for argument in arguments:
        if argument.endswith(SUFFIXES) and Path(argument).is_file():
            try:
                if is_classifier(Config.fromfile(argument)):
                    return True
            except Exception:  # what is wrong with it is told when it is checked
                continue
    return False


def _start_cpu_processes(launcher: str, config: Config) -> None:
    """Join the process group over gloo: MMEngine's own start needs a GPU for each process."""
    if launcher != 'pytorch':
        sys.exit(f'error: --launcher {launcher} needs a GPU on every node, and this one has none. '
                 'On CPUs use tools/dist_train.sh and tools/dist_test.sh.')
    synchronised = list(_synchronised_norms(config.model, 'model'))
    if config.get('sync_bn'):
        synchronised.append('sync_bn=None')
    if synchronised:
        sys.exit('error: PyTorch synchronises batch norms between GPUs only, and there is none '
                 f'here. On CPUs leave that out: --cfg-options {" ".join(synchronised)}')
    torch.distributed.init_process_group('gloo')
    sys.argv += [
        '--cfg-options', *CPU_WRAPPER_OPTIONS,
        f'model_wrapper_cfg.find_unused_parameters={config.get("find_unused_parameters", False)}'
    ]


def _synchronised_norms(node, path: str) -> Iterator[str]:
    """The options that make ordinary batch norms of those in a model's configuration."""
    if isinstance(node, dict):
        if node.get('type') in ('SyncBN', 'MMSyncBN'):
            yield f'{path}.type=BN'
        for key, value in node.items():
            yield from _synchronised_norms(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _synchronised_norms(value, f'{path}.{index}')
