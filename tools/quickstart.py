#!/usr/bin/env python
"""See SA-Net learn: train Mask R-CNN on drawn shapes, report COCO AP, draw predictions.

Run it again to go on after an interruption, or to see the report of a finished run.
"""
import argparse
import sys
from pathlib import Path

from mmengine.config import Config, DictAction

from sa_mmdet.quickstart import run_quickstart

CONFIG = Path(__file__).parents[1] / 'configs/quickstart/mask-rcnn_sa-r50_fpn_shapes.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', type=Path, default=CONFIG, help='config of the detector')
    parser.add_argument(
        '--work-dir', default='work_dirs/quickstart', help='folder for logs, weights and pictures')
    parser.add_argument(
        '--min-ap',
        type=float,
        default=0.5,
        help='bbox and segm AP under which the exit status is 1')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not args.config.is_file():
        sys.exit(f'error: config {args.config} does not exist')
    config = Config.fromfile(args.config)
    config.work_dir = args.work_dir
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    try:
        reached = run_quickstart(config, args.min_ap)
    except FileExistsError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted: run the same command again to go on from the last whole epoch')
    sys.exit(0 if reached else 1)


if __name__ == '__main__':
    main()
