"""Train, test and record one run after another."""
import itertools
import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from ...checkpoint.files import sha256, write_atomically
from ...environment import versions
from ..validate.config import NO_CHECKS, reason
from ..validate.dataset import dataset_meta, dataset_paths
from ..visualize.predictions import encode
from .benchmarks.coco import draw_detections
from .checks import disk_problems
from .processes import locked, run_child
from .report import PICTURE
from .runs import ReproduceError, Run, RunFailed, Settings, read_result
from .tables import load_table
from .weights import describe_start

GPU = re.compile(r'\s*GPU [\d,]+: (.+?)\s*$')  # in the environment that MMEngine logs


def run_all(runs: list[Run], settings: Settings, after_each) -> list[str]:
    """Finish all runs, and resume those that were interrupted.

    Args:
        runs: runs in the order in which to run them. Finished ones are skipped.
        settings: settings of the runs.
        after_each: called without arguments after each finished run.

    Returns:
        A sentence for each run that failed.

    Raises:
        ReproduceError: The work dir is in use, or the disk is full.
    """
    failures = []
    with locked(settings.work_dir) as lock:
        for number, run in enumerate(runs, start=1):
            if run.finished:
                continue
            for problem in disk_problems([run], settings.work_dir):
                raise ReproduceError(f'stopped before {run.name}: {problem}. Nothing is lost: the '
                                     'same command resumes here')
            print(f'\n=== [{number}/{len(runs)}] {run.name}: {run.state()} ({_remaining(runs)})',
                  flush=True)
            try:
                bring_to_end(run, lock)
            except RunFailed as error:
                failures.append(str(error))
                print(f'=== {error}\n=== continuing with the next run', flush=True)
            else:
                after_each()
    return failures


def bring_to_end(run: Run, lock: int) -> None:
    """Train one run from its last whole checkpoint, test it, and write its result.

    Raises:
        RunFailed: Training, testing or the evaluation failed.
    """
    for folder in (run.folder, run.config_file.parent):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run.config_file, run.config.pretty_text)
    given = run.settings.checkpoints.get(run.row.name)
    checkpoint = given or _train(run, lock)
    logged = _test(run, checkpoint, lock)
    result = _result(run, checkpoint, logged)
    write_atomically(run.result_file, json.dumps(result, indent=1))
    if run.row.detector:
        _draw(run, result)


def _draw(run: Run, result: dict) -> None:
    """Draw the detections in the first images, for the report."""
    dataset = run.config.test_dataloader.dataset
    try:
        picture = draw_detections(
            Path(result['evaluated_on']['annotations']), dataset_paths(dataset)[1],
            run.prediction_file(run.tasks[-1]), dataset_meta(dataset))
    except Exception as error:  # whatever drawing raises, the result is kept
        print(f'=== {run.name}: no picture of its detections: {reason(error)}')
    else:
        write_atomically(run.folder / PICTURE, encode(picture))


def train_command(run: Run) -> list[str]:
    """Return the command that trains or resumes a run."""
    place = [str(run.folder)] if run.settings.slurm else ['--work-dir', str(run.folder)]
    return _command(run, 'train', *place, '--resume')


def test_command(run: Run, checkpoint: Path) -> list[str]:
    """Return the command that tests a checkpoint and saves its predictions."""
    return _command(run, 'test', str(checkpoint), '--work-dir', str(run.folder / 'test'))


def _command(run: Run, tool: str, *arguments: str) -> list[str]:
    settings = run.settings
    arguments = [str(run.config_file), *arguments, NO_CHECKS]
    if settings.slurm:
        return [str(settings.tools / f'slurm_{tool}.sh'), settings.slurm, run.row.name, *arguments]
    torchrun, launcher = [], []
    if settings.gpus > 1:
        torchrun = ['-m', 'torch.distributed.run', '--standalone',
                    f'--nproc_per_node={settings.gpus}']
        launcher = ['--launcher', 'pytorch']
    return [sys.executable, *torchrun, str(settings.tools / f'{tool}.py'), *arguments, *launcher]


def _run(run: Run, command: list[str], lock: int, what: str) -> None:
    settings = run.settings
    environment = dict(
        PYTHONUNBUFFERED='1', PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    if settings.slurm:
        environment |= dict(GPUS=str(settings.gpus), GPUS_PER_NODE=str(min(settings.gpus, 8)))
    elif not settings.gpus:
        environment |= dict(CUDA_VISIBLE_DEVICES='')
    status, last = run_child(command, run.output_file, lock, settings.root, environment)
    if status:
        last_line = next((line for line in reversed(last) if line.strip()), 'no output')
        raise RunFailed(f'{run.name}: {what} failed with exit status {status}: {last_line} '
                        f'(full output: {run.output_file})')


def _train(run: Run, lock: int) -> Path:
    """Train to the last epoch, and return the last checkpoint."""
    epoch, checkpoint = run.last_checkpoint()
    if epoch < run.epochs:
        run.make_start()
        # AtomicCheckpointHook resumes from the last whole checkpoint
        _run(run, train_command(run), lock, 'training')
        epoch, checkpoint = run.last_checkpoint()
        if epoch < run.epochs:
            raise RunFailed(f'{run.name}: training ended without the checkpoint of epoch '
                            f'{run.epochs} (the last is from epoch {epoch}). See {run.output_file}')
    return checkpoint


def _test(run: Run, checkpoint: Path, lock: int) -> dict[str, float]:
    """Test the checkpoint, and return what MMEngine logged: no metrics if nothing was detected."""
    for task in run.tasks:
        run.prediction_file(task).unlink(missing_ok=True)
    before = set(run.folder.glob('test/*/*.json'))
    _run(run, test_command(run, checkpoint), lock, 'testing')
    logs = sorted(set(run.folder.glob('test/*/*.json')) - before)
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return {name: value for metrics in lines for name, value in metrics.items()
            if '/' in name}  # MMEngine's own values, such as the time, have no prefix


def _result(run: Run, checkpoint: Path, logged: dict[str, float]) -> dict:
    """Return all that a report needs to know about a run, with metrics of its saved predictions."""
    try:
        evaluated_on = run.benchmark.describe(run.config)
    except (OSError, ValueError) as error:
        raise RunFailed(f'{run.name}: {error}') from error
    result = dict(dataset=run.benchmark.name, row=run.row.name, seed=run.seed, metrics={},
                  logged=logged, predictions={}, evaluated_on=evaluated_on, trained=run.trains)
    for task in run.tasks:
        path = run.prediction_file(task)
        if not path.is_file():
            raise RunFailed(f'{run.name}: testing wrote no {path}. See {run.output_file}')
        try:
            result['metrics'][task] = run.benchmark.evaluate(evaluated_on, path, task)
        except (OSError, ValueError) as error:
            raise RunFailed(f'{run.name}: {error}') from error
        result['predictions'][task] = dict(file=path.name, sha256=sha256(path))
        _compare_with_log(run, result, task)
    return result | _provenance(run, checkpoint)


def _compare_with_log(run: Run, result: dict, task: str) -> None:
    """Raise RunFailed if the metrics differ from those that the test logged, if it logged any."""
    expected = run.benchmark.logged(task).values()
    lacking = [name for name in expected if name not in result['logged']]
    nothing_found = not json.loads(run.prediction_file(task).read_text())
    if nothing_found and len(lacking) == len(expected):
        return
    if lacking:
        raise RunFailed(f'{run.name}: the test did not log {lacking[0]}. See {run.output_file}')
    if differing := run.benchmark.differs_from_log(result, task):
        raise RunFailed(f'{run.name}: the metrics of the saved predictions differ from those that '
                        f'the test logged: {"; ".join(differing)}')


def _provenance(run: Run, checkpoint: Path) -> dict:
    settings, config = run.settings, run.config
    if run.trains:
        training = dict(
            start=describe_start(config) + _change_of(run), epochs=run.epochs,
            hours=training_hours(run.folder),
            batch=config.train_dataloader.batch_size * max(settings.gpus, 1))
    else:
        training = dict(start=f'not trained here: {checkpoint} was tested', epochs=None,
                        hours=None, batch=None)
    return dict(
        **training, checkpoint=str(checkpoint), checkpoint_sha256=sha256(checkpoint),
        start_sha256=run.start_sha256,
        gpus=settings.gpus, device=_device(run), versions=versions(), commit=_commit(settings.root),
        cfg_options=settings.cfg_options, finished=datetime.now().isoformat(timespec='seconds'))


def _change_of(run: Run) -> str:
    """Return what the start of a run changed in the row's attention besides its weights."""
    start = run.settings.starts.get((run.row.depth, run.row.attention), {})
    biases = (start.get('attention') or {}).get('bias')
    return '' if biases is None else f' (SE {"with" if biases else "without"} biases)'


def training_hours(folder: Path) -> float:
    """Return the hours of all training attempts, each from the start in its log's name to the end.
    """
    seconds = 0.
    for log in folder.glob('[0-9]*_[0-9]*/*.log'):
        start = datetime.strptime(log.parent.name, '%Y%m%d_%H%M%S').timestamp()
        seconds += max(0., log.stat().st_mtime - start)
    return seconds / 3600


def _device(run: Run) -> str:
    """Return the GPU's name from MMEngine's log, since a Slurm node can't be asked from here."""
    for log in sorted(run.folder.glob('**/*.log')):
        with log.open(errors='replace') as lines:
            for line in itertools.islice(lines, 60):
                if match := GPU.match(line):
                    return match[1]
    return 'CPU'


def _commit(root: Path) -> str:
    command = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def _remaining(runs: list[Run]) -> str:
    """Return how long the unfinished runs may take, scaled by operations from the finished ones."""
    finished = [read_result(run.result_file, ('hours', )) for run in runs if run.finished]
    hours = sum(result['hours'] or 0 for result in finished)
    done = sum(_gflops(run) for run in runs if run.finished)
    left = sum(_gflops(run) for run in runs if not run.finished)
    count = sum(not run.finished for run in runs)
    if not hours:
        return f'{count} of {len(runs)} runs remain; the first one gives an estimate of the time'
    return f'{count} of {len(runs)} runs remain, about {hours / done * left:.1f} h of training'


def _gflops(run: Run) -> float:
    """Return the printed GFLOPs; rows that are only in Table 4 have those of the plain network."""
    if run.row.gflops:
        return run.row.gflops
    table = {row.name: row for row in load_table(3)}
    plain = next(row for row in table.values() if row.attention == 'none'
                 and (row.detector, row.backbone) == (run.row.detector, run.row.backbone))
    return table.get(run.row.name, plain).gflops

