#!/usr/bin/env python
"""Measure what shuffle attention costs, beside what it is compared with, in one run."""
import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from rich.console import Console

from sa_mmdet.benchmark.measure import describe_machine
from sa_mmdet.benchmark.operator import BACKWARD, FLOORS, FORWARD, OperatorCase, measure_operator
from sa_mmdet.benchmark.report import operator_plot, operator_table
from sa_mmdet.files import write_atomically
from sa_mmdet.ops import implementations
from sa_mmdet.ops.shuffle_attention.implementations import choose

DTYPES = ('float32', 'bfloat16', 'float16', 'float64')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    op = commands.add_parser(
        'op', help="the operator on the shapes of ResNet-50's stages, beside the formula, "
        'torch.compile of the formula, and as floors clone and clone + add')
    op.add_argument('--batch', type=positive, default=1, help='images')
    op.add_argument('--size', type=positive, nargs=2, default=(800, 1344),
                    metavar=('HEIGHT', 'WIDTH'), help='of the images, multiples of 32')
    op.add_argument('--dtype', choices=DTYPES, default='float32')
    op.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    op.add_argument('--channels-last', action='store_true')
    op.add_argument('--implementation', choices=list(implementations()),
                    help="of the operator; the device's by default")
    op.add_argument('--no-compile', dest='compiled', action='store_false',
                    help='leave out torch.compile of the formula')
    op.add_argument('--repeats', type=positive, default=15,
                    help='rounds of which the median counts')
    op.add_argument('--threads', type=positive, help="on the CPU; PyTorch's choice by default")
    op.add_argument('--out', type=Path, metavar='FILE',
                    help='write FILE.json, and a plot into FILE.png')
    args = parser.parse_args()
    if any(side % 32 for side in args.size):
        parser.error(f'--size must be multiples of 32, got {args.size[0]} {args.size[1]}')
    try:
        args.device = torch.device(args.device)
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f'--device {args.device}: {str(error).splitlines()[0]}')
    if args.out and not args.out.absolute().parent.is_dir():
        parser.error(f'--out: the folder {args.out.absolute().parent} does not exist')
    return args


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {value}')
    return value


def benchmark_operator(args: argparse.Namespace) -> None:
    """Measure, print, and write what was asked for."""
    case = OperatorCase(
        batch=args.batch, height=args.size[0], width=args.size[1],
        dtype=getattr(torch, args.dtype), device=args.device, channels_last=args.channels_last,
        implementation=args.implementation, compiled=args.compiled, repeats=args.repeats)
    machine = describe_machine(args.device)
    try:
        implementation = choose(torch.empty(0, dtype=case.dtype, device=case.device),
                                case.implementation)
        rows = list(measure_operator(case))
    except RuntimeError as error:
        sys.exit(f'error: {error}')
    title = (f'shuffle attention by {implementation!r}, batch {args.batch}, '
             f'{args.size[0]}×{args.size[1]}, {args.dtype}'
             f'{", channels_last" if args.channels_last else ""}: {machine["device"]}'
             + (f', {machine["threads"]} threads' if machine['threads'] else ''))
    print(title)
    Console(width=None if sys.stdout.isatty() else 110).print(operator_table(rows))
    total = {(row['pass'], row['name']): row['milliseconds'] for row in rows
             if row['stage'] == 'ResNet-50'}
    for pass_ in (FORWARD, BACKWARD):
        operator, floor = total[pass_, 'operator'], FLOORS[pass_]
        print(f'{pass_}: operator / ({floor}) = {operator / total[pass_, floor]:.2f}, '
              f'formula / operator = {total[pass_, "formula"] / operator:.2f}')
    if args.out:
        command = shlex.join(['python', 'tools/benchmark.py', *sys.argv[1:]])
        content = dict(command=command, title=title, machine=machine, rows=rows)
        write_atomically(args.out.with_suffix('.json'), json.dumps(content, indent=1))
        write_atomically(args.out.with_suffix('.png'), operator_plot(rows, title))


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    benchmark_operator(args)


if __name__ == '__main__':
    main()
