#!/usr/bin/env python
"""Export a detector to an ONNX file that runs without this package; see docs/deploy.md."""
import argparse
import sys
from pathlib import Path

from sa_mmdet.apps.export.detectors import ExportError
from sa_mmdet.apps.export.onnx_file import (
    OPSET,
    check_packages,
    export_detector,
    read_image,
    verify,
)
from sa_mmdet.apps.validate.config import (
    ConfigError,
    Overrides,
    check_detector,
    new_file_problem,
    read_config,
)
from sa_mmdet.checkpoint import CheckpointError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=Path,
                        help='config of a Faster R-CNN, Mask R-CNN or RetinaNet')
    parser.add_argument('checkpoint', type=Path, help='its trained weights')
    parser.add_argument('out', type=Path, help='file to write; must not exist')
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                       help='size of the images that the file takes')
    sizes.add_argument('--dynamic', action='store_true', help='take images of any size (default)')
    parser.add_argument('--verify', type=Path, metavar='IMAGE',
                        help='compare the detections in IMAGE with PyTorch\'s')
    parser.add_argument('--opset', type=int, default=OPSET,
                        help='ONNX opset (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=Overrides,
                        help='override settings: key=value ...')
    args = parser.parse_args()
    if args.size and min(args.size) < 32:
        parser.error(f'--size must be at least 32 32, got {args.size[0]} {args.size[1]}')
    if problem := new_file_problem(args.out):
        parser.error(problem)
    return args


def main() -> None:
    args = parse_args()
    try:
        check_packages()
        config = read_config(args.config, args.cfg_options)
        check_detector(config)
        image = read_image(args.verify, config, args.size) if args.verify else None
        detector = export_detector(config, args.checkpoint, args.out, args.size, args.opset)
        print(f'wrote {args.out}')
        if image is not None:
            verify(detector, args.out, image)
    except (CheckpointError, ConfigError, ExportError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
