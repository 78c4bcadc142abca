#!/usr/bin/env python
"""Measure the time and memory of shuffle attention and of its alternatives in one run."""
import argparse
import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from sa_mmdet.apps.speed.backbone import BackboneCase, measure_backbone
from sa_mmdet.apps.speed.deployed import (
    RUNTIMES,
    DeployCase,
    measure_deployed,
    missing_package,
)
from sa_mmdet.apps.speed.measure import Case, describe_machine
from sa_mmdet.apps.speed.operator import OperatorCase, measure_operator
from sa_mmdet.apps.speed.report import (
    comparison_lines,
    comparison_plot,
    comparison_table,
    compiled_lines,
    compiled_table,
    file_lines,
    operator_lines,
    operator_plot,
    operator_table,
)
from sa_mmdet.apps.speed.train import TrainCase, check_config, measure_training
from sa_mmdet.apps.validate.config import ConfigError, file_problem, read_config, reason
from sa_mmdet.checkpoint.files import write_atomically
from sa_mmdet.ops import triton_launch
from sa_mmdet.ops.dispatch import IMPLEMENTATIONS, choose, module_of

OUTPUTS = ('.json', '.png')
NETWORK_DTYPES = ('float32', 'bfloat16', 'float16')
CONFIG = Path(__file__).parents[1] / 'configs/mask_rcnn/mask-rcnn_sa-r50_fpn_1x_coco.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    op = commands.add_parser(
        'op', parents=[common_options(batch=1)],
        help="the operator on the shapes of ResNet-50's stages, compared with its formula, "
        'torch.compile of the formula, and the floors clone and clone + add')
    op.add_argument('--dtype', choices=(*NETWORK_DTYPES, 'float64'), default='float32',
                    help='type of the input (default: %(default)s)')
    op.add_argument('--implementation', choices=list(IMPLEMENTATIONS),
                    help="implementation of the operator (default: the device's)")
    op.add_argument('--bottleneck', action='store_true',
                    help='measure batch norm, attention, addition and ReLU in one operator, also '
                    'compared with a bottleneck without attention; the floors are add and add + '
                    'clone + add')
    op.add_argument('--no-compile', dest='compiled', action='store_false',
                    help='leave out torch.compile of the formula')
    instead = op.add_mutually_exclusive_group()
    instead.add_argument('--sweep', action='store_true',
                         help='only measure the Triton operator, with other plans')
    instead.add_argument('--compile-only', action='store_true',
                         help='measure nothing; print registers, instructions and so on of the '
                         'Triton kernels for compute capabilities 8.0, 9.0 and 10.0, without a GPU')
    op.set_defaults(run=benchmark_operator)
    backbone = commands.add_parser(
        'backbone', parents=[common_options(batch=1), network_options()],
        help='SAResNet compared with plain ResNet and ResNet with the formula, in inference and '
        'training')
    backbone.add_argument('--depth', type=int, choices=(50, 101, 152), default=50,
                          help='depth of the ResNet (default: %(default)s)')
    backbone.set_defaults(run=benchmark_backbone)
    train = commands.add_parser(
        'train', parents=[common_options(batch=2), network_options()],
        help='the training step of a whole detector, with the same backbones')
    train.add_argument('config', nargs='?', type=Path, default=CONFIG,
                       help='config of a detector with SAResNet or AttentionResNet (default: '
                       f'{CONFIG.stem})')
    train.set_defaults(run=benchmark_training)
    deploy = commands.add_parser(
        'deploy', parents=[common_options(batch=1)],
        help='SAResNet as trained and as deployed, compared with plain ResNet with folded batch '
        'norms, in PyTorch, torch.compile, onnxruntime and OpenVINO, on the CPU in float32')
    deploy.add_argument('--depth', type=int, choices=(50, 101, 152), default=50,
                        help='depth of the ResNet (default: %(default)s)')
    deploy.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=RUNTIMES,
                        help='runtimes to measure (default: all)')
    deploy.set_defaults(run=benchmark_deployed, dtype='float32')
    args = parser.parse_args()
    check(args, parser)
    return args


def common_options(batch: int) -> argparse.ArgumentParser:
    """Return the options of every command; ``batch`` is the default of --batch."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument('--batch', type=positive, default=batch,
                         help='images in a batch (default: %(default)s)')
    options.add_argument('--size', type=positive, nargs=2, default=(800, 1344),
                         metavar=('HEIGHT', 'WIDTH'),
                         help='size of the images, multiples of 32 (default: 800 1344)')
    options.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                         help='such as cpu or cuda:0 (default: the GPU if there is one)')
    options.add_argument('--channels-last', action='store_true',
                         help='use the channels_last layout; in a detector, for the backbone')
    options.add_argument('--repeats', type=positive, default=15,
                         help='rounds to take the median of (default: %(default)s)')
    options.add_argument('--threads', type=positive,
                         help="threads on the CPU (default: PyTorch's choice)")
    options.add_argument('--out', type=Path, metavar='FILE',
                         help='write FILE.json, and FILE.png if there is a plot')
    return options


def network_options() -> argparse.ArgumentParser:
    """Return the options of the commands that run networks."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument('--dtype', choices=NETWORK_DTYPES, default='float32',
                         help='16 bits mean automatic mixed precision (default: %(default)s)')
    options.add_argument('--tf32', action=argparse.BooleanOptionalAction,
                         help='on CUDA in float32: use TF32 in convolutions and matrix products, '
                         "or in neither (default: PyTorch's choice)")
    options.add_argument('--formula', action=argparse.BooleanOptionalAction, default=True,
                         help='also measure ResNet with the formula, which is slow (default: yes)')
    return options


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {value}')
    return value


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with a message if the options don't fit each other or this machine."""
    if any(side % 32 for side in args.size):
        parser.error(f'--size must be multiples of 32, got {args.size[0]} {args.size[1]}')
    try:
        args.device = torch.empty(0, device=args.device).device  # with its index
    except (RuntimeError, AssertionError) as error:
        parser.error(f'--device {args.device}: {reason(error)}')
    if args.device.type not in ('cpu', 'cuda'):
        parser.error(f'--device {args.device}: use cpu or cuda, since time and memory can be '
                     'measured only there')
    if args.command == 'op' and (args.sweep or args.compile_only):
        if args.implementation not in (None, 'triton'):
            parser.error(f'--implementation {args.implementation}: --sweep and --compile-only need '
                         'triton')
        args.implementation = 'triton'
    if args.command == 'deploy':
        check_runtimes(args, parser)
    if getattr(args, 'tf32', None) is not None and (
            args.device.type != 'cuda' or args.dtype != 'float32'):
        parser.error('--tf32 and --no-tf32 are for float32 on CUDA')
    if args.out is not None:
        if not args.out.name:
            parser.error(f'--out {args.out}: give a file name without its suffix')
        for suffix in OUTPUTS:
            if problem := file_problem(args.out.with_suffix(suffix)):
                parser.error(f'--out: {problem}')


def check_runtimes(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if args.device.type != 'cpu' or args.channels_last:
        parser.error('deploy runs on the CPU, where the runtimes choose the layout: use --device '
                     'cpu without --channels-last')
    for runtime in args.runtimes:
        if missing := missing_package(runtime):
            parser.error(f'--runtimes {runtime}: {missing} is not installed. Run pip install '
                         f'{missing}, or choose from {", ".join(RUNTIMES)}')


def benchmark_operator(args: argparse.Namespace) -> None:
    """Measure the operator, print the results, and write the files that were asked for."""
    case = case_of(args, OperatorCase, implementation=args.implementation, compiled=args.compiled,
                   bottleneck=args.bottleneck, sweep=args.sweep)
    subject = 'shuffle attention' + ' in the bottleneck' * args.bottleneck
    if args.compile_only:
        compile_kernels(args, case, f"Triton's kernels of {subject}, {describe_case(args)}")
        return
    title = describe(args, f'{subject} by {implementation_name(args, case)!r}')
    rows = measure(args, measure_operator(case), title, operator_table)
    print(*operator_lines(rows), sep='\n')
    write(args, title, rows, None if args.sweep else operator_plot)


def compile_kernels(args: argparse.Namespace, case: OperatorCase, title: str) -> None:
    """Compile the Triton kernels, print what they use, and write it to a file if asked for."""
    if case.dtype not in triton_launch.DTYPES:
        sys.exit(f'error: Triton takes {", ".join(map(str, triton_launch.DTYPES))}, not '
                 f'{case.dtype}: change --dtype')
    if triton_launch.INTERPRETED:
        sys.exit('error: TRITON_INTERPRET is set, so nothing is compiled: unset it')
    try:
        from triton import knobs  # noqa: F401
    except ImportError as error:
        sys.exit(f'error: {error}: --compile-only needs Triton 3.4 or newer. Run pip install '
                 'triton')
    from sa_mmdet.apps.speed.compiled import compile_operator
    rows = measure(args, compile_operator(case), title, compiled_table)
    print(*compiled_lines(rows), sep='\n')
    write(args, title, rows)


def benchmark_backbone(args: argparse.Namespace) -> None:
    """Measure the backbones, print the results, and write the files that were asked for."""
    case = case_of(args, BackboneCase, formula=args.formula, depth=args.depth)
    report_networks(args, case, measure_backbone(case), f'ResNet-{args.depth}')


def benchmark_training(args: argparse.Namespace) -> None:
    """Measure a detector's training step, print the results, and write the files asked for."""
    case = case_of(args, TrainCase, formula=args.formula, config=detector_config(args.config))
    report_networks(args, case, measure_training(case), args.config.stem)


def benchmark_deployed(args: argparse.Namespace) -> None:
    """Measure the deployed backbones, print the results, and write the files asked for."""
    case = case_of(args, DeployCase, formula=False, depth=args.depth,
                   runtimes=tuple(args.runtimes))
    rows = report_networks(args, case, measure_deployed(case), f'ResNet-{args.depth} deployed')
    print(*file_lines(rows), sep='\n')


def case_of(args: argparse.Namespace, kind: type[Case], **options) -> Case:
    """Return the case to measure, from the options of every command and more."""
    return kind(batch=args.batch, height=args.size[0], width=args.size[1],
                dtype=getattr(torch, args.dtype), device=args.device,
                channels_last=args.channels_last, repeats=args.repeats, **options)


def detector_config(path: Path) -> Config:
    """Return the config of the detector to compare; end with a message if it is another."""
    try:
        config = read_config(path)
        check_config(config)
    except ConfigError as error:
        sys.exit(f'error: {error}')
    except ValueError as error:
        sys.exit(f'error: config {path}: {error}')
    return config


def report_networks(args: argparse.Namespace, case: Case, rows: Iterator[dict],
                    subject: str) -> list[dict]:
    """Measure networks, print the results, write the files asked for, and return the rows."""
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # it logs how each parameter starts
    implementation = implementation_name(args, case)
    title = describe(args, f'{subject}, shuffle attention by {implementation!r}')
    rows = measure(args, rows, title, comparison_table)
    print(*comparison_lines(rows), sep='\n')
    write(args, title, rows, comparison_plot)
    return rows


def implementation_name(args: argparse.Namespace, case: Case) -> str:
    """Return the name of the implementation that computes the case."""
    try:
        chosen = choose(torch.empty(0, dtype=case.dtype, device=case.device),
                        getattr(args, 'implementation', None))
    except (RuntimeError, ValueError) as error:
        sys.exit(f'error: {error}')
    return next(name for name in IMPLEMENTATIONS if module_of(name) is chosen)


def describe(args: argparse.Namespace, subject: str) -> str:
    """Return the title of a measurement."""
    machine = describe_machine(args.device)
    return (f'{subject}, {describe_case(args)}: {machine["device"]}'
            + (f', {machine["threads"]} threads' if machine['threads'] else ''))


def describe_case(args: argparse.Namespace) -> str:
    """Return the part of the title that doesn't depend on the machine."""
    tf32 = {True: ', TF32', False: ', no TF32'}.get(getattr(args, 'tf32', None), '')
    return (f'batch {args.batch}, {args.size[0]}×{args.size[1]}, {args.dtype}{tf32}'
            + ', channels_last' * args.channels_last)


def measure(args: argparse.Namespace, rows: Iterator[dict], title: str,
            table: Callable[[list[dict]], Table]) -> list[dict]:
    """Measure, print the title and the table, and return the rows."""
    print(title, flush=True)
    try:
        rows = list(rows)
    except (RuntimeError, ValueError) as error:  # out of memory, a type that a layer lacks, ...
        sys.exit(f'error: the measurement in {args.dtype} on {args.device} failed: '
                 f'{reason(error)}. Choose another --dtype, or a smaller --size or --batch')
    Console(width=None if sys.stdout.isatty() else 110).print(table(rows))
    return rows


def write(args: argparse.Namespace, title: str, rows: list[dict],
          plot: Callable[[list[dict], str], bytes] | None = None) -> None:
    """Write the rows, and a plot of them, if asked for."""
    if args.out:
        command = shlex.join(['python', 'tools/benchmark.py', *sys.argv[1:]])
        content = dict(command=command, title=title, machine=describe_machine(args.device),
                       rows=rows)
        write_atomically(args.out.with_suffix('.json'), json.dumps(content, indent=1))
        if plot:
            write_atomically(args.out.with_suffix('.png'), plot(rows, title))


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device.type == 'cuda':
        torch.cuda.set_device(args.device)
    if getattr(args, 'tf32', None) is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    args.run(args)


if __name__ == '__main__':
    main()
