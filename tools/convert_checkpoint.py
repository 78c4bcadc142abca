#!/usr/bin/env python
"""Convert a checkpoint for a detector; docs/weights.md explains the conversion."""
import argparse
import sys
from pathlib import Path

from sa_mmdet.apps.convert import convert_checkpoint
from sa_mmdet.apps.validate.config import ConfigError, Overrides, check_detector, read_config
from sa_mmdet.checkpoint import CheckpointError
from sa_mmdet.models import ConversionError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=Path, help='config of the detector that the weights are for')
    parser.add_argument('checkpoint', type=Path,
                        help='weights of a detector, backbone or classifier, from MMDetection, '
                        'torchvision, MMPretrain or the SA-Net authors')
    parser.add_argument('out', type=Path, help='file to write; must not exist')
    parser.add_argument('--verify', action='store_true', help="compare the features before and "
                        'after, on random input in float64')
    parser.add_argument('--deploy', action='store_true', help='write the deployed network: batch '
                        'norms folded, shuffle absorbed (docs/deploy.md)')
    parser.add_argument('--cfg-options', nargs='+', action=Overrides,
                        help='override settings: key=value ...')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        config = read_config(args.config, args.cfg_options)
        check_detector(config)
        convert_checkpoint(config, args.checkpoint, args.out, args.verify, args.deploy)
    except (CheckpointError, ConfigError, ConversionError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
