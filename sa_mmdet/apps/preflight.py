"""What MMDetection's, or MMPretrain's, train.py and test.py are told to read, before they start."""
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

from ..checkpoint import CheckpointError
from ..checkpoint.files import folder_problem
from ..checkpoint.read import load_weights
from ..environment import torchvision_problem
from .validate.coco import coco_problems
from .validate.config import (
    ConfigError,
    check_model,
    datasets_below,
    is_classifier,
    read_config,
)
from .validate.imagenet import imagenet_problems

# What MMDetection's configs call the weights that parts of a model start from.
WEIGHT_KEYS = ('checkpoint', 'pretrained', 'teacher_ckpt')


def checked_config(args: Namespace, splits: tuple[str, ...]) -> Config:
    """The config of a command line, when nothing is wrong with all that it leads to.

    Args:
        args: of MMDetection's or MMPretrain's train.py or test.py.
        splits: the data sets that the script reads, of 'train', 'val' and 'test'.

    Raises:
        SystemExit: the config has no model, the work dir cannot be written to, a checkpoint is
            missing, damaged or holds code, or a data set is incomplete or none of the model's.
    """
    if getattr(args, 'no_validate', False):  # of MMPretrain's train.py
        splits = tuple(split for split in splits if split != 'val')
    config = _read_config(args)
    _check_work_dir(args, config)
    initial = _weight_files(config.get('model')) if 'train' in splits else []
    for source in [getattr(args, 'checkpoint', None), getattr(args, 'resume', None),
                   config.get('load_from'), *initial]:
        _check_checkpoint(source)
    check_data(config, splits)
    if 'train' in splits:
        _check_initial_weights(config)
    return config


def _read_config(args) -> Config:
    try:
        config = read_config(Path(args.config).absolute(), args.cfg_options)
        check_model(config, scope='mmengine')  # what MMEngine takes where none is set
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


def check_data(config: Config, splits: tuple[str, ...]) -> None:
    """Exit with a message unless the data sets of ``splits`` are there and can be read."""
    loader = f'{splits[0]}_dataloader'
    if not isinstance(config.get(loader), dict):
        kind = 'classifier' if is_classifier(config) else 'detector'
        sys.exit(f'error: config {config.filename} has no {loader}, found {config.get(loader)!r}: '
                 f'give the config of a {kind} with its data')
    if is_classifier(config):
        _exit_with(imagenet_problems(config, splits))
        return
    missing = [path for path in _data_paths(config, splits) if not path.exists()]
    if missing:
        listed = '\n'.join(f'  {path.absolute()}' for path in dict.fromkeys(missing))
        sys.exit(f'error: the data set is incomplete; not found:\n{listed}\n'
                 'Put COCO, or a link to it, under data/coco of the folder where you start the '
                 'command, or say where it is with --cfg-options (README, "Data").')
    _exit_with(problem for split in splits
               for dataset in _datasets(config.get(f'{split}_dataloader'))
               for problem in coco_problems(dataset, trains=split == 'train'))


def _exit_with(problems: Iterable[str]) -> None:
    problems = dict.fromkeys(problems)
    if problems:
        sys.exit('error: ' + '\n'.join(problems))


def _check_initial_weights(config: Config) -> None:
    """MMEngine finds torchvision's weights through torchvision, also where it loads others next."""
    init = (config.model.get('backbone') or {}).get('init_cfg')
    source = init.get('checkpoint', '') if isinstance(init, dict) else ''
    if not source or not source.startswith('torchvision://'):
        return
    if problem := torchvision_problem():
        sys.exit(f'error: {problem}')


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


def _datasets(loader: ConfigDict | None) -> Iterator[ConfigDict]:
    """The data sets of a data loader that are read from a file of annotations."""
    return (dataset for dataset in datasets_below(loader) if 'ann_file' in dataset)
