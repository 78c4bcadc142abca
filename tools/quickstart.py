#!/usr/bin/env python
"""See SA-Net learn: train Mask R-CNN on drawn shapes, report COCO AP, draw predictions.

Run it again to resume after an interruption, or to see the report of a finished run.
"""
import argparse
import sys
from pathlib import Path

from sa_mmdet.apps.quickstart.run import check_quickstart, run_quickstart
from sa_mmdet.apps.validate.config import (
    ConfigError,
    Overrides,
    check_detector,
    folder_problem,
    read_config,
)

CONFIG = Path(__file__).parents[1] / 'configs/quickstart/mask-rcnn_sa-r50_fpn_shapes.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', type=Path, default=CONFIG,
                        help=f'config of the detector (default: {CONFIG.name})')
    parser.add_argument('--work-dir', default='work_dirs/quickstart',
                        help='folder for logs, weights and pictures (default: %(default)s)')
    parser.add_argument('--min-ap', type=float, default=0.5,
                        help='exit with 1 if bbox or segm AP is lower (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=Overrides,
                        help='override settings: key=value ...')
    args = parser.parse_args()
    if not -1 <= args.min_ap <= 1:
        parser.error(f'--min-ap must be between -1 and 1, got {args.min_ap}')
    if not args.work_dir or (problem := folder_problem(Path(args.work_dir))):
        parser.error(f'--work-dir: {problem if args.work_dir else "none given"}. Choose another')
    return args


def main() -> None:
    args = parse_args()
    try:
        config = read_config(args.config, {'work_dir': args.work_dir} | (args.cfg_options or {}))
        check_quickstart(config)
        check_detector(config)
        reached = run_quickstart(config, args.min_ap)
    except (ConfigError, OSError) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted: run the same command again to resume from the last whole epoch')
    sys.exit(0 if reached else 1)


if __name__ == '__main__':
    main()
