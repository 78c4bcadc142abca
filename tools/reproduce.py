#!/usr/bin/env python
"""Reproduce the tables of the paper: train and test their rows, and write a report.

Tables 3 and 4 (detectors on COCO) are the default. `--table 1 2` runs the ImageNet classifiers,
whose weights can start the detectors. `--study shapes` runs a small comparison with several seeds,
on images that it draws. After any interruption, the same command resumes. Paths may be relative to
the current folder.
"""
import argparse
import shlex
import signal
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from sa_mmdet.apps.paper.checks import find_problems, save_settings
from sa_mmdet.apps.paper.execute import run_all, test_command, train_command
from sa_mmdet.apps.paper.report import write_report
from sa_mmdet.apps.paper.runs import (
    BENCHMARKS,
    ReproduceError,
    Run,
    Settings,
    benchmark_of,
    dataset_of,
    plan_runs,
    read_result,
    select_rows,
)
from sa_mmdet.apps.paper.tables import DATASETS, TASKS
from sa_mmdet.apps.paper.weights import imagenet_backbones
from sa_mmdet.apps.study.report import report_problems, write_study
from sa_mmdet.apps.study.runs import StudyRun, study_rows
from sa_mmdet.apps.validate.config import ConfigError, Overrides, read_config

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ('shapes', )
SEEDS_OF_A_STUDY = 5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--table', type=int, nargs='+', choices=TASKS,
                        help='tables of the paper: 1 and 2 (ImageNet), or 3 and 4 (COCO) '
                        '(default: 3 4)')
    parser.add_argument('--study', choices=STUDIES, help='instead of a table: do attention and '
                        'converted weights help Mask R-CNN on drawn shapes?')
    parser.add_argument('--rows', nargs='+', default=[], metavar='ROW', help='rows of these tables '
                        "or of the study, such as mask-rcnn_sa-r50 or 'retinanet_*' (default: all)")
    parser.add_argument('--data-root', type=Path, help='folder of the data (default: data/coco, '
                        'data/imagenet, or data/textured_shapes, where the study draws its images)')
    parser.add_argument('--work-dir', type=Path, help='folder for the runs and report/report.md '
                        '(default: work_dirs/reproduce, work_dirs/imagenet for Tables 1 and 2, or '
                        'work_dirs/study)')
    where = parser.add_argument_group('where to run')
    where.add_argument('--gpus', type=int, metavar='N', help='processes, one per GPU, started by '
                       'torchrun; 0 means the CPU (default: all GPUs, 1 for the study). The '
                       "learning rate scales with the batch (MMDetection's --auto-scale-lr)")
    where.add_argument('--slurm', metavar='PARTITION', help='run with srun on this partition; '
                       '--gpus then defaults to 8, 1 for the study')
    what = parser.add_argument_group('what to run')
    what.add_argument('--seeds', type=int, metavar='K', help='train every row with seeds 0 to K-1 '
                      f'(default: 1, {SEEDS_OF_A_STUDY} for the study)')
    what.add_argument('--init', nargs='+', default=['resnet'], metavar=('START', 'PATH'),
                      help="start weights, for Tables 3 and 4. resnet: torchvision's, as in the "
                      'configs. imagenet=PATH [PATH ...]: backbones trained on ImageNet with their '
                      'attention, each recognised by its content, or the work dir of Tables 1 and '
                      '2 (default: resnet)')
    what.add_argument('--cfg-options', nargs='+', action=Overrides, default={},
                      help='override settings of all configs: key=value ...')
    what.add_argument('--eval-only', nargs='+', metavar='ROW=CHECKPOINT',
                      help='test these checkpoints instead of training')
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument('--dry-run', action='store_true', help='list the runs and commands and check '
                      'everything that could fail later; start nothing')
    mode.add_argument('--report', action='store_true',
                      help='only write the report of the finished runs')
    mode.add_argument('--check', action='store_true', help='evaluate the saved predictions of the '
                      'finished runs again and compare the figures')
    args = parser.parse_args()
    if args.study and args.table:
        parser.error(f'--study {args.study} runs no table of the paper: remove --table')
    try:
        args.table = args.table or list(DATASETS['COCO'])
        args.dataset = args.study or dataset_of(args.table)
    except ReproduceError as error:
        parser.error(str(error))
    benchmark = BENCHMARKS[args.dataset]
    args.data_root = args.data_root or benchmark.data_root
    args.work_dir = args.work_dir or benchmark.work_dir
    if args.seeds is None:
        args.seeds = SEEDS_OF_A_STUDY if args.study else 1
    if args.seeds < 1:
        parser.error(f'--seeds must be at least 1, got {args.seeds}')
    if args.slurm == '':
        parser.error('--slurm must name a partition')
    if args.gpus is None:
        args.gpus = 8 if args.slurm else torch.cuda.device_count()
        if args.study:
            args.gpus = min(args.gpus, 1)  # more would change the batch
    if args.gpus < (1 if args.slurm else 0):
        parser.error(f'--gpus must be at least {1 if args.slurm else 0}, got {args.gpus}')
    if args.study and args.eval_only:
        parser.error('--eval-only is for the tables: remove it, the study tests what it trains')
    if args.eval_only and (args.rows or args.seeds > 1 or args.init != ['resnet']):
        parser.error('--eval-only already names the rows: remove --rows, --seeds and --init, which '
                     'are for training')
    if args.init != ['resnet'] and benchmark is not BENCHMARKS['COCO']:
        parser.error('--init is for the detectors of Tables 3 and 4: remove it, since classifiers '
                     'and the study start from random weights')
    return args


def plan(args: argparse.Namespace) -> tuple[list[Run], Settings]:
    """Return the runs that the command line asks for, and their settings."""
    checkpoints = parse_checkpoints(args.eval_only or [])
    rows = study_rows(args.rows) if args.study else select_rows(
        args.table, list(checkpoints) or args.rows)
    start, paths = parse_init(args.init)
    if rows:
        read_config(ROOT / 'configs' / rows[0].config, args.cfg_options)  # warns, or refuses them
    settings = Settings(
        root=ROOT, work_dir=args.work_dir.resolve(), data_root=args.data_root.resolve(),
        gpus=args.gpus, slurm=args.slurm, init=start,
        starts=imagenet_backbones(paths, rows) if start == 'imagenet' else {},
        cfg_options=args.cfg_options, checkpoints=checkpoints)
    return plan_runs(rows, args.seeds, settings, StudyRun if args.study else Run), settings


def parse_init(values: list[str]) -> tuple[str, list[Path]]:
    """Return 'resnet' or 'imagenet', and the paths after 'imagenet='."""
    start, _, first = values[0].partition('=')
    paths = [Path(path).resolve() for path in (first, *values[1:]) if path]
    if start not in ('resnet', 'imagenet') or (start == 'imagenet') != bool(paths):
        raise ReproduceError(
            f'--init {" ".join(values)}: give resnet, or imagenet=PATH with the checkpoints')
    return start, paths


def parse_checkpoints(values: list[str]) -> dict[str, Path]:
    """Return the checkpoints to test, by row name."""
    checkpoints = {}
    for value in values:
        row, equals, path = value.partition('=')
        if not equals or not path:
            raise ReproduceError(f'--eval-only {value}: give ROW=CHECKPOINT, such as '
                                 'mask-rcnn_sa-r50=epoch_12.pth')
        if row in checkpoints:
            raise ReproduceError(f'--eval-only names {row} twice, with {checkpoints[row].name} and '
                                 f'{path}: give one checkpoint for each row')
        checkpoints[row] = Path(path).resolve()
    return checkpoints


def tell(subject: str, problems: list[str], otherwise: str) -> bool:
    """Print the problems of a subject, or ``otherwise``; return whether there are none."""
    for problem in problems:
        print(f'error: {subject}: {problem}', file=sys.stderr)
    if not problems:
        print(f'{subject}: {otherwise}')
    return not problems


def show(runs: list[Run]) -> None:
    """Print every run's state, and the commands that it needs."""
    table = Table('run', 'state')
    for run in runs:
        table.add_row(run.name, run.state())
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    for run in runs:
        if run.finished:
            continue
        checkpoint = run.settings.checkpoints.get(run.row.name)
        if run.trains:
            print(shlex.join(train_command(run)))
            checkpoint = run.final_checkpoint
        print(shlex.join(test_command(run, checkpoint)))
    unwritten = [run for run in runs if not run.config_file.is_file()]
    if unwritten:
        print(f'({len(unwritten)} of these configs are written when their runs start)')


def results_in(work_dir: Path) -> dict[Path, dict]:
    """Return the results of a work dir's finished runs, by run folder."""
    return {path.parent: read_result(path)
            for path in sorted(work_dir.glob('*/seed*/result.json'))}


def report(work_dir: Path, dataset: str) -> Path:
    """Write the report of the finished runs; if there are none, an empty one for this data set."""
    results = results_in(work_dir)
    dataset = next((benchmark_of(result).name for result in results.values()), dataset)
    if dataset in STUDIES:
        return write_study(work_dir / 'report', results)
    return write_report(work_dir / 'report', results, ROOT / 'configs', dataset)


def check(work_dir: Path) -> bool:
    """Evaluate all saved predictions again; return whether every figure is as reported."""
    results = results_in(work_dir)
    if not results:
        raise ReproduceError(f'{work_dir} has no finished run: give the work dir of finished runs')
    well = [tell(f'{result["row"]} seed {result["seed"]}',
                 benchmark_of(result).check_result(result, folder), 'every figure is as reported')
            for folder, result in results.items()]
    if any(benchmark_of(result).name in STUDIES for result in results.values()):
        well.append(tell('report', report_problems(work_dir / 'report', results),
                         'matches the files of the runs'))
    return all(well)


def train_and_test(runs: list[Run], settings: Settings, dataset: str) -> bool:
    """Finish all runs; return whether all of them have a result."""
    save_settings(settings)
    BENCHMARKS[dataset].prepare(settings.data_root)
    failures = run_all(runs, settings, after_each=lambda: report(settings.work_dir, dataset))
    path = report(settings.work_dir, dataset)
    print(f'\n{sum(run.finished for run in runs)} of {len(runs)} runs are finished: {path}')
    for failure in failures:
        print(f'error: {failure}', file=sys.stderr)
    return not failures


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.report or args.check:
            if not args.work_dir.is_dir():
                found = 'is not a folder' if args.work_dir.exists() else 'does not exist'
                raise ReproduceError(f'--work-dir {args.work_dir} {found}: give the folder of the '
                                     'runs')
            if args.check:
                sys.exit(0 if check(args.work_dir) else 1)
            print(report(args.work_dir, args.dataset))
            return
        runs, settings = plan(args)
        checked = [tell(subject, problems, 'ok')
                   for subject, problems in find_problems(runs, settings)]
        if not all(checked):
            sys.exit('error: nothing was started')
        if args.dry_run:
            show(runs)
            return
        sys.exit(0 if train_and_test(runs, settings, args.dataset) else 1)
    except (ConfigError, ReproduceError) as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        sys.exit(f'error: {error}. No finished work is lost: the same command resumes')
    except KeyboardInterrupt:
        sys.exit('\ninterrupted: the same command resumes from the last whole checkpoint')


if __name__ == '__main__':
    main()
