#!/usr/bin/env python
"""Draw what a detector sees: predictions, Grad-CAM, attention gates, or groups of channels.

Writes PNGs and one HTML page with all of them. See docs/visualize.md and MODE --help.
"""
import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from sa_mmdet.apps.validate.coco import coco_problems
from sa_mmdet.apps.validate.config import (
    ConfigError,
    Overrides,
    check_detector,
    folder_problem,
    read_config,
    without_doubts,
)
from sa_mmdet.apps.visualize.detector import Detector, find_class, find_device, load_detector
from sa_mmdet.apps.visualize.grad_cam import check_captum
from sa_mmdet.apps.visualize.modes import Options, check_options, draw_sections
from sa_mmdet.apps.visualize.page import write_page
from sa_mmdet.apps.visualize.pictures import (
    Picture,
    find_images,
    pictures_of_dataset,
    pictures_of_files,
)
from sa_mmdet.checkpoint import CheckpointError
from sa_mmdet.environment import versions

TITLES = {
    'predict': 'Predictions',
    'cam': 'Grad-CAM: where scores come from',
    'gates': 'Attention gates',
    'groups': 'Groups before and after the channel shuffle',
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    modes = parser.add_subparsers(dest='mode', metavar='MODE', required=True)
    common, targets = common_options(), target_options()
    modes.add_parser('predict', parents=[common],
                     help='boxes, masks and scores, next to the ground truth if it is known')
    cam = modes.add_parser('cam', parents=[common, targets],
                           help="Grad-CAM of a detector's scores, or of two detectors' scores")
    cam.add_argument('--layer', default='backbone.layer4.2',
                     help='layer to compute the map at (default: %(default)s)')
    cam.add_argument('--compare', nargs=2, metavar=('CONFIG', 'CHECKPOINT'),
                     help='a second model to draw next to the first')
    modes.add_parser('gates', parents=[common],
                     help='the gates of all attention layers, and their neutral constants')
    groups = modes.add_parser(
        'groups', parents=[common, targets],
        help='response and score of each group before and after the channel shuffle')
    groups.add_argument('--layer', default='backbone.layer4.2.sa',
                        help='a ShuffleAttention layer (default: %(default)s)')
    args = parser.parse_args()
    check(args, parser)
    return args


def common_options() -> argparse.ArgumentParser:
    """Return the options of every mode."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument('config', type=Path, help='config of the detector')
    options.add_argument('checkpoint', type=Path, help='trained weights of the detector')
    options.add_argument('input', type=Path, nargs='?', help='an image or a folder of images '
                         "(default: the config's test data set)")
    options.add_argument('--out-dir', type=Path, default=Path('work_dirs/visualize'),
                         help='folder for the PNGs and MODE.html (default: %(default)s)')
    options.add_argument('--images', type=int, default=2,
                         help='maximum number of images (default: %(default)s)')
    options.add_argument('--pred-score-thr', type=float, default=0.3,
                         help='lowest score that counts as a detection (default: %(default)s)')
    options.add_argument('--device',
                         help='such as cpu or cuda:0 (default: the GPU if there is one)')
    options.add_argument('--cfg-options', nargs='+', action=Overrides,
                         help='override settings: key=value ...')
    return options


def target_options() -> argparse.ArgumentParser:
    """Return the options of the modes that explain scores."""
    options = argparse.ArgumentParser(add_help=False)
    which = options.add_mutually_exclusive_group()
    which.add_argument('--classes', nargs='+', metavar='NAME', help='classes whose scores to '
                       'explain (default: the two best of each image)')
    which.add_argument('--boxes', nargs='+', type=int, metavar='NUMBER', help='single detections '
                       'to explain instead, by their numbers in the pictures of predict')
    return options


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with a message if the options make no sense."""
    if args.images < 1:
        parser.error(f'--images must be at least 1, got {args.images}')
    if not 0 <= args.pred_score_thr <= 1:
        parser.error(f'--pred-score-thr must be between 0 and 1, got {args.pred_score_thr}')
    if min(getattr(args, 'boxes', None) or [0]) < 0:
        parser.error(f'--boxes must be at least 0, got {min(args.boxes)}')
    if problem := folder_problem(args.out_dir):
        parser.error(f'--out-dir: {problem}: choose another')


def find_pictures(config: Config, args: argparse.Namespace) -> Iterator[Picture]:
    if args.input is None:
        if problems := without_doubts(coco_problems(config, ('test', ), evaluates=False)):
            raise ConfigError('\n'.join(problems))
        return pictures_of_dataset(config, args.images)
    return pictures_of_files(config, find_images(args.input, args.images))


def read_detector_config(path: Path, overrides: dict | None = None) -> Config:
    config = read_config(path, overrides)
    check_detector(config)
    if not isinstance(config.get('test_dataloader'), dict):
        raise ConfigError(f'config {path} has no test_dataloader, which says how to prepare '
                          'images: give the config of a detector with its data')
    return config


def visualize(args: argparse.Namespace) -> Path:
    """Draw and write everything; return the path of the page."""
    if args.mode in ('cam', 'groups'):
        check_captum()
    device = find_device(args.device)
    config = read_detector_config(args.config, args.cfg_options)
    compared = getattr(args, 'compare', None)
    other_config = read_detector_config(Path(compared[0])) if compared else None
    pictures = find_pictures(config, args)
    detector = Detector(args.config.stem, load_detector(config, args.checkpoint, device), config)
    other = compared and Detector(
        other_name(args.config, Path(compared[0])),
        load_detector(other_config, Path(compared[1]), device), other_config)
    classes = getattr(args, 'classes', None)
    options = Options(
        detector, args.pred_score_thr, getattr(args, 'layer', None),
        [find_class(detector.model, name) for name in classes] if classes else None,
        getattr(args, 'boxes', None), other)
    check_options(args.mode, options)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    sections = draw_sections(args.mode, options, pictures, args.out_dir)
    page = args.out_dir / f'{args.mode}.html'
    write_page(page, TITLES[args.mode], facts(args, device), sections)
    return page


def other_name(config: Path, compared: Path) -> str:
    """Return a name for pictures that differs from the first detector's."""
    return compared.stem if compared.stem != config.stem else f'{compared.stem} (compared)'


def facts(args: argparse.Namespace, device: str) -> dict[str, str]:
    """Return what the page says about the models and the machine."""
    compared = getattr(args, 'compare', None)
    return {
        'config': str(args.config),
        'weights': str(args.checkpoint),
        **({'compared with': ' '.join(compared)} if compared else {}),
        'command': shlex.join(['python', *sys.argv]),
        'device': device,
        'versions': ', '.join(f'{name} {version}' for name, version in versions().items()),
    }


def main() -> None:
    args = parse_args()
    try:
        page = visualize(args)
    except (CheckpointError, ConfigError) as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        sys.exit(f'error: {error}: fix the file, or choose another --out-dir')
    except KeyboardInterrupt:
        sys.exit(f'interrupted: the pictures drawn so far are in {args.out_dir}')
    print(f'all on one page: {page}')


if __name__ == '__main__':
    main()
