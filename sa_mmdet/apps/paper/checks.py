"""Checks that find in seconds, before anything starts, what could fail after days."""
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from mmcv.ops import get_compiling_cuda_version
from mmengine.config import Config

from ...checkpoint.files import sha256, write_atomically
from ...environment import tools_of
from ..validate.config import (
    ConfigError,
    build_model,
    check_epochs,
    differing_keys,
    folder_problem,
    listed,
    read_config,
    reason,
    without_doubts,
)
from ..validate.weights import (
    checkpoint_problem,
    initial_weights,
    initial_weights_problem,
    loading_problem,
)
from .benchmarks.base import SPLITS, Benchmark
from .runs import ReproduceError, Run, Settings, read_result

SETTINGS_FILE = 'settings.json'


def find_problems(runs: list[Run], settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """Check everything that could fail later.

    Yields:
        The name of a check and the problems that it found, as sentences: none if all is well.
    """
    benchmark = runs[0].benchmark  # all rows of a command have the same
    missing = benchmark.software_problem()
    yield 'software', [missing] if missing else list(_software_problems(benchmark, settings))
    if missing:
        return
    configs, broken = _build_configs(runs)
    yield 'configs', broken
    if broken:
        return
    yield 'work dir', list(_work_dir_problems(runs, settings))
    data = (problem for run in _distinct_data(runs)
            for problem in benchmark.data_problems(
                run.config, SPLITS if run.trains else ('test', )))
    yield 'data set', without_doubts(data)
    made_here = {str(run.start_file) for run in runs if run.start_file}
    yield 'weights', list(_weights_problems(configs, settings, made_here))
    yield 'disk', list(disk_problems(runs, settings.work_dir))


def _build_configs(runs: list[Run]) -> tuple[dict[str, Config], list[str]]:
    """Return the configs by row, and a sentence for each whose model cannot be built."""
    configs, problems = {}, []
    for run in runs:
        if run.row.name in configs:
            continue
        try:
            configs[run.row.name] = run.config
            build_model(run.config)
            _check_parts(run)
        except Exception as error:  # a config can be wrong in any way
            problems.append(f'{run.row.name}: its config cannot be built: {reason(error)}')
    return configs, problems


def _check_parts(run: Run) -> None:
    """Raise ValueError if a part that every run needs is missing or malformed."""
    config = run.config
    for split in SPLITS:
        for part in ('dataloader', 'evaluator') if split != 'train' else ('dataloader', ):
            name = f'{split}_{part}'
            if not config.get(name):
                raise ValueError(f'{name} is {config.get(name)!r}, but every run needs one')
        dataset = config[f'{split}_dataloader'].get('dataset', {})
        for key in run.benchmark.dataset_keys:
            if not dataset.get(key):
                raise ValueError(f'{split}_dataloader.dataset.{key} must say where the data is, '
                                 f'got {dataset.get(key)!r}')
    check_epochs(config)


def _software_problems(benchmark: Benchmark, settings: Settings) -> Iterator[str]:
    tools = tools_of(benchmark.scope)
    missing = [name for name in ('train.py', 'test.py') if not (tools / name).is_file()]
    if missing:
        yield (f'{benchmark.scope} has no {", ".join(missing)} in {tools}: install it from a '
               'wheel')
    if settings.slurm:
        if shutil.which('srun') is None:
            yield '--slurm needs srun, which is not on the PATH: run this on a machine with Slurm'
        return
    found = torch.cuda.device_count()
    if settings.gpus > found:
        yield (f'too few GPUs: --gpus {settings.gpus}, but PyTorch sees {found}. Pass --gpus '
               f'{found}' + (' to run one process on the CPU' if not found else ''))
    detects = benchmark.scope == 'mmdet'
    if settings.gpus and detects and get_compiling_cuda_version() == 'not available':
        yield ("mmcv's operators were built without CUDA: run python tools/install_mmcv.py on a "
               'machine with a GPU')


def _work_dir_problems(runs: list[Run], settings: Settings) -> Iterator[str]:
    place = settings.work_dir
    if problem := folder_problem(place):
        yield f'{problem}: choose another --work-dir'
        return
    differing = list(_other_settings(settings))
    yield from differing or (problem for run in runs for problem in _other_run(run))


def _other_settings(settings: Settings) -> Iterator[str]:
    """Yield a sentence if the work dir was started with settings that give other results."""
    path = settings.work_dir / SETTINGS_FILE
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        before = error
    if not isinstance(before, dict):
        yield f'{path} is damaged ({before}): choose another --work-dir'
        return
    now = settings.identity()
    differing = [f'{name} was {before.get(name, "not set")} and is now {now[name]}'
                 for name in now if before.get(name) != now[name]]
    if differing:
        yield (f'{settings.work_dir} has runs with other settings: {"; ".join(differing)}. Runs '
               'must not be mixed: use the same settings, or choose another --work-dir')


def _other_run(run: Run) -> Iterator[str]:
    """Yield a sentence if a run was started with another config or checkpoint."""
    if run.config_file.is_file():
        try:
            begun = read_config(run.config_file)
        except ConfigError as error:
            yield f'{error}. Remove the file, or choose another --work-dir'
            return
        keys = list(differing_keys(begun.to_dict(), run.config.to_dict()))
        if keys:
            yield (f'{run.name} was started with another config ({run.config_file}): '
                   f'{listed(keys)} changed. Choose another --work-dir')
    if run.finished and not run.trains:
        try:
            tested = read_result(run.result_file, ('checkpoint', 'checkpoint_sha256'))
        except ReproduceError as error:
            yield str(error)
            return
        given = run.settings.checkpoints[run.row.name]
        if given.is_file() and sha256(given) != tested['checkpoint_sha256']:
            yield (f'{run.folder} has the result of {tested["checkpoint"]}, which is not {given}: '
                   'choose another --work-dir')


def save_settings(settings: Settings) -> None:
    """Make the work dir, and record the settings of its runs."""
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(settings.work_dir / SETTINGS_FILE, json.dumps(settings.identity(), indent=1))


def _distinct_data(runs: list[Run]) -> list[Run]:
    """Return one run for each set of data files that runs read."""
    distinct = {}
    for run in runs:
        datasets = [run.config[f'{split}_dataloader'].dataset for split in SPLITS]
        files = [str(dataset.get(key)) for dataset in datasets
                 for key in ('type', 'data_root', 'ann_file', 'data_prefix', 'indices')]
        distinct.setdefault(tuple(files), run)
    return list(distinct.values())


def _weights_problems(configs: dict[str, Config], settings: Settings, made_here: set[str]
                      ) -> Iterator[str]:
    checked, load = {}, functools.cache(loading_problem)  # rows may share their files
    for name, config in configs.items():
        if settings.checkpoints:
            problem = checkpoint_problem(settings.checkpoints[name], config)
        else:
            key = json.dumps(config.model.backbone, sort_keys=True, default=str)
            if key not in checked:
                checked[key] = initial_weights_problem(config)
            sources = config.get('load_from'), *initial_weights(config.model)
            given = (source for source in sources if source not in made_here)
            problem = checked[key] or next(filter(None, map(load, given)), None)
        if problem:
            yield f'{name}: {problem}'


def disk_problems(runs: list[Run], work_dir: Path) -> Iterator[str]:
    """Yield a sentence if the disk is too small for the unfinished runs."""
    unfinished = [run for run in runs if not run.finished]
    configs = {run.row.name: run.config for run in unfinished}
    params = {name: sum(parameter.numel() for parameter in build_model(config).parameters())
              for name, config in configs.items()}
    needed = sum(_bytes_needed(run, params[run.row.name]) for run in unfinished)
    needed += max((params[run.row.name] * run.benchmark.bytes_per_parameter  # one being written
                   for run in unfinished if run.trains), default=0)
    existing = next(folder for folder in (work_dir, *work_dir.absolute().parents)
                    if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        yield (f'{existing} has {free / 1e9:.1f} GB free, and the runs may need '
               f'{needed / 1e9:.1f} GB: free some space, or choose another --work-dir')


def _bytes_needed(run: Run, params: int) -> int:
    written = sum(path.stat().st_size for path in run.folder.rglob('*') if path.is_file())
    benchmark = run.benchmark
    training = params * benchmark.bytes_per_parameter * benchmark.kept_checkpoints
    training = training if run.trains else 0
    predictions = sum(run.benchmark.bytes_of_predictions[task] for task in run.tasks)
    return max(0, training + predictions - written)
