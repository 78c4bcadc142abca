"""Run MMDetection's own train.py and test.py, with the checks and the CPU processes they lack."""
import os
import pickle
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import mmdet
import torch
import torch.distributed
from mmengine.config import Config, ConfigDict

from .checkpoint import TORCHVISION_MISSING, CheckpointError
from .checkpoint.read import load_weights, refusal, refuse_code
from .configuration import ConfigError, Overrides, check_detector, read_config
from .datasets.coco import coco_problems
from .files import folder_problem

# What MMDetection's configs call the weights that parts of a model start from.
WEIGHT_KEYS = ('checkpoint', 'pretrained', 'teacher_ckpt')

MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'

# DistributedDataParallel refuses device ids for a model on the CPU; MMEngine always gives some.
CPU_WRAPPER_OPTIONS = [
    'model_wrapper_cfg.type=MMDistributedDataParallel', 'model_wrapper_cfg.device_ids=None',
    'model_wrapper_cfg.broadcast_buffers=False'
]


def run_mmdet_tool(name: str, splits: tuple[str, ...]) -> None:
    """Run a script of the installed MMDetection with this process's command line.

    Args:
        name: 'train.py' or 'test.py'.
        splits: the data sets that the script reads, of 'train', 'val' and 'test'.

    Raises:
        SystemExit: the configuration or a data set is missing, a checkpoint is missing, damaged or
            holds code, the processes cannot be started on this machine, or the script itself exits.
    """
    script = MMDET_TOOLS / name
    if not script.is_file():
        sys.exit(f'error: {script} is missing: install MMDetection from its wheel or by '
                 '`pip install`, which put its tools there')
    tool = runpy.run_path(str(script), run_name='mmdet_tool')
    # the script's own --cfg-options, which would end in a traceback where there is no '='
    tool['parse_args'].__globals__['DictAction'] = Overrides
    args = tool['parse_args']()
    refuse_code()
    config = _read_config(args)
    _check_work_dir(args, config)
    initial = _weight_files(config.get('model')) if 'train' in splits else []
    for source in [getattr(args, 'checkpoint', None), getattr(args, 'resume', None),
                   config.get('load_from'), *initial]:
        _check_checkpoint(source)
    _check_data(config, splits)
    if 'train' in splits:
        _check_initial_weights(config)
    on_cpus = args.launcher != 'none' and not torch.cuda.is_available()
    if on_cpus:
        _start_cpu_processes(args.launcher, config)
    try:
        tool['main']()
    except pickle.UnpicklingError as error:  # of a file that was downloaded meanwhile
        sys.exit(f'error: {refusal(error, "a checkpoint")}')
    except KeyboardInterrupt:
        sys.exit('interrupted' + (': the same command with --resume goes on from the last '
                                  'checkpoint' if 'train' in splits else ''))
    if on_cpus:
        # gloo's threads, still running when the interpreter ends, can abort the process
        torch.distributed.destroy_process_group()


def _read_config(args) -> Config:
    try:
        config = read_config(Path(args.config).absolute(), args.cfg_options)
        check_detector(config, scope='mmengine')  # what MMEngine takes where none is set
    except ConfigError as error:
        sys.exit(f'error: {error}')
    return config


def _check_work_dir(args, config: Config) -> None:
    folder = args.work_dir or config.get('work_dir') or 'work_dirs'
    if problem := folder_problem(Path(folder)):
        sys.exit(f'error: --work-dir {folder}: {problem}: choose another')


def _check_checkpoint(source: str | None) -> None:
    """Load what MMEngine is going to, which it would do with whatever the file holds."""
    if source and source != 'auto' and '://' not in source:
        try:
            load_weights(Path(source).expanduser().absolute())
        except CheckpointError as error:
            sys.exit(f'error: checkpoint {error}')


def _weight_files(node) -> Iterator[str]:
    """The files, or their URLs, from which the parts of a model's configuration are initialised."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _weight_files(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in WEIGHT_KEYS and isinstance(value, str):
                yield value
            else:
                yield from _weight_files(value)


def _check_data(config: Config, splits: tuple[str, ...]) -> None:
    loader = f'{splits[0]}_dataloader'
    if not isinstance(config.get(loader), dict):
        sys.exit(f'error: config {config.filename} has no {loader}, found {config.get(loader)!r}: '
                 'give the config of a detector with its data')
    missing = [path for path in _data_paths(config, splits) if not path.exists()]
    if missing:
        listed = '\n'.join(f'  {path.absolute()}' for path in dict.fromkeys(missing))
        sys.exit(f'error: the data set is incomplete; not found:\n{listed}\n'
                 'Put COCO, or a link to it, under data/coco of the folder where you start the '
                 'command, or say where it is with --cfg-options (README, "Data").')
    problems = [problem for split in splits
                for dataset in _datasets(config.get(f'{split}_dataloader'))
                for problem in coco_problems(dataset, trains=split == 'train')]
    if problems:
        sys.exit('error: ' + '\n'.join(dict.fromkeys(problems)))


def _check_initial_weights(config: Config) -> None:
    """MMEngine finds torchvision's weights through torchvision, also where it loads others next."""
    init = (config.model.get('backbone') or {}).get('init_cfg')
    source = init.get('checkpoint', '') if isinstance(init, dict) else ''
    if not source or not source.startswith('torchvision://'):
        return
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # the latter from another torch's torchvision
        sys.exit(f'error: {TORCHVISION_MISSING}')


def _data_paths(config: Config, splits: tuple[str, ...]) -> Iterator[Path]:
    """The local files and folders that the data sets of ``splits`` are read from."""
    for split in splits:
        for dataset in _datasets(config.get(f'{split}_dataloader')):
            sources = [dataset.get('ann_file'), *dataset.get('data_prefix', {}).values()]
            for source in filter(None, sources):
                path = os.path.join(dataset.get('data_root') or '', source)
                if '://' not in path:
                    yield Path(path)
        evaluators = config.get(f'{split}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if evaluator.get('ann_file') and '://' not in evaluator.ann_file:
                yield Path(evaluator.ann_file)


def _datasets(node) -> Iterator[ConfigDict]:
    """The data sets below a data loader's configuration, inside any wrappers."""
    if isinstance(node, list):
        for item in node:
            yield from _datasets(item)
    elif isinstance(node, dict):
        if 'ann_file' in node:
            yield node
        for key in ('dataset', 'datasets'):
            yield from _datasets(node.get(key))


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
