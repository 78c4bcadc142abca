#!/usr/bin/env python
"""Count parameters and operations of any config, or of a table to compare with the paper.

One multiply-add is one operation. Two conventions are counted: the paper's and MMEngine's current.
"""
import argparse
import json
import sys
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from sa_mmdet.apps.paper.complexity import (
    CLASSIFICATION_SHAPE,
    CONVENTIONS,
    DETECTION_SHAPE,
    Complexity,
    classifier_complexity,
    detector_complexity,
)
from sa_mmdet.apps.paper.complexity_table import CELLS, compute_table, render, unexplained
from sa_mmdet.apps.paper.tables import load_table
from sa_mmdet.apps.validate.config import (
    Overrides,
    check_detector,
    file_problem,
    is_classifier,
    read_config,
)
from sa_mmdet.checkpoint.files import write_atomically

CONFIGS = Path(__file__).parents[1] / 'configs'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('config', nargs='?', type=Path,
                      help='config of a detector, or a config of configs/imagenet')
    what.add_argument('--table', type=int, nargs='+', choices=(1, 2, 3), help='check tables of the '
                      'paper: 1 and 2 (classifiers at 224x224), 3 (detectors)')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help="image size for a config (default: the paper's, {} {}, or {} {} for a "
                        'classifier)'.format(*DETECTION_SHAPE, *CLASSIFICATION_SHAPE))
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the rows to this file')
    parser.add_argument('--cfg-options', nargs='+', action=Overrides,
                        help='override settings: key=value ...')
    args = parser.parse_args()
    if args.table and (args.shape or args.cfg_options):
        parser.error('--shape and --cfg-options are for a config, not for --table')
    if args.shape and min(args.shape) < 1:
        parser.error(f'--shape must be positive, got {args.shape[0]} {args.shape[1]}')
    if args.json and (problem := file_problem(args.json)):
        parser.error(f'--json: {problem}')
    return args


def check_table(table: int) -> tuple[list[dict], bool]:
    """Print a table; return its rows, and whether it matches the paper but for known slips."""
    console = Console(stderr=True)
    rows = list(track(compute_table(table, CONFIGS), f'Table {table}', len(load_table(table)),
                      console=console, transient=True))
    Console(width=None if sys.stdout.isatty() else 120).print(render(table, rows))
    for cell in CELLS:
        printed = [row for row in rows if row[f'paper_{cell}'] is not None]
        equal = sum(cell not in row['differences'] for row in printed)
        if printed:
            print(f'{cell}: {equal} of {len(printed)} as printed')
    for row in rows:
        for cell, reason in row['differences'].items():
            if reason:
                print(f"the paper's own slip: {row['row']} {cell} is printed "
                      f'{row[f"paper_{cell}"]}, computed {row[cell]:.4f}: {reason}')
    wrong = unexplained(rows)
    if wrong:
        print(f'differs from the paper: {", ".join(wrong)}')
    return rows, not wrong


def count_config(args: argparse.Namespace) -> list[dict]:
    """Print and return the two counts of one config."""
    try:
        config = read_config(args.config, args.cfg_options)
        count = count_classifier if is_classifier(config) else count_detector
        shape, counts = count(config, args.shape)
    except ValueError as error:
        sys.exit(f'error: {error}')
    rows = []
    for convention, count in zip(CONVENTIONS, counts, strict=True):
        print(f'{convention:8}  {count.params_m:8.3f} M parameters  {count.gflops:9.3f} GFLOPs  '
              f'({shape[0]}x{shape[1]})')
        rows.append(dict(config=str(args.config), convention=convention, shape=shape,
                         params_m=count.params_m, gflops=count.gflops))
    return rows


def count_detector(config: Config, shape: list[int] | None) -> tuple[tuple, list[Complexity]]:
    """Return the image shape, and the counts in both conventions."""
    check_detector(config)
    shape = tuple(shape or DETECTION_SHAPE)
    return shape, [detector_complexity(config, convention, shape) for convention in CONVENTIONS]


def count_classifier(config: Config, shape: list[int] | None) -> tuple[tuple, list[Complexity]]:
    """Return what ``count_detector`` does. It needs MMPretrain's configs, but doesn't import it."""
    parts = [(config.get('model') or {}).get(part) or {} for part in ('backbone', 'neck', 'head')]
    backbone, _, head = parts
    kinds = [part.get('type') for part in parts]
    if not str(kinds[0]).startswith('mmdet.') or kinds[1:] != ['GlobalAveragePooling',
                                                               'LinearClsHead']:
        raise ValueError(f'config {config.filename}: found {", ".join(map(str, kinds))}: expected '
                         'a classifier with a backbone of MMDetection (mmdet.), '
                         'GlobalAveragePooling and LinearClsHead, as in configs/imagenet')
    shape = tuple(shape or CLASSIFICATION_SHAPE)
    return shape, [classifier_complexity(backbone, convention, shape, head.num_classes)
                   for convention in CONVENTIONS]


def main() -> None:
    args = parse_args()
    if args.table:
        checked = [check_table(table) for table in dict.fromkeys(args.table)]
        rows = [row for rows, _ in checked for row in rows]
        right = all(well for _, well in checked)
    else:
        rows, right = count_config(args), True
    if args.json:
        write_atomically(args.json, json.dumps(rows, indent=1))
    sys.exit(0 if right else 1)


if __name__ == '__main__':
    main()
