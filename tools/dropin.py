#!/usr/bin/env python
"""Put shuffle attention into a config of every family of MMDetection's zoo, and see what works.

Interrupted, the same command goes on where it was; finished, it starts anew.
"""
import argparse
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported, also by the attempts
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # nothing is downloaded

from sa_mmdet.dropin.families import check_names
from sa_mmdet.dropin.matrix import FAILS, MatrixError, run_matrix
from sa_mmdet.dropin.report import row_in_words, write_page
from sa_mmdet.environment import versions

DOCS = Path(__file__).resolve().parents[1] / 'docs'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'families', nargs='*', metavar='FAMILY',
        help="folders of MMDetection's configs, such as mask_rcnn; all by default")
    parser.add_argument('--jobs', type=int, default=1, help='families at a time, one thread each')
    parser.add_argument(
        '--timeout', type=float, default=300, help='seconds for one attempt, 300 by default')
    parser.add_argument(
        '--out', type=Path, default=DOCS,
        help='folder with compatibility.md and the results, dropin/STACK.json; docs by default')
    parser.add_argument(
        '--traceback', action='store_true', help='show the whole error of what fails')
    args = parser.parse_args()
    for option in ('jobs', 'timeout'):
        if getattr(args, option) <= 0:
            parser.error(f'--{option} must be positive, got {getattr(args, option):g}')
    return args


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def tell(row: dict, tracebacks: list[str]) -> None:
        print(row_in_words(row), flush=True)
        for traceback in tracebacks if args.traceback else []:
            print(traceback, file=sys.stderr)

    try:
        check_names(args.families)
        file = args.out / 'dropin' / f'{versions()["stack"]}.json'
        file.parent.mkdir(parents=True, exist_ok=True)
        results = run_matrix(args.families, file, args.jobs, args.timeout, tell)
        page = write_page(args.out)
    except (ValueError, MatrixError, OSError) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('\ninterrupted: the same command goes on with the families that are left')
    print(page)
    failed = [row['family'] for row in results['rows']
              if any(route['outcome'] == FAILS for route in row['routes'].values())]
    if failed:
        sys.exit(f'error: fails with attention only: {", ".join(failed)}')


if __name__ == '__main__':
    main()
