"""Run the quickstart: generate shapes, train SA-ResNet-50 Mask R-CNN on them, evaluate, draw."""
import collections
import itertools
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

from ...checkpoint.files import write_atomically
from ...checkpoint.read import refuse_code
from ..datasets.shapes import generate_shapes
from ..validate.config import (
    ConfigError,
    check_epochs,
    differing_keys,
    folder_problem,
    listed,
    read_config,
)
from ..visualize.predictions import draw_predictions, encode

METRICS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def check_quickstart(config: Config) -> None:
    """Raise ConfigError unless ``run_quickstart`` can use a config and its folders."""
    for key in ('train_dataloader', 'test_dataloader', 'train_cfg'):
        if not isinstance(config.get(key), dict):
            raise ConfigError(f'config {config.filename} has no {key}, found {config.get(key)!r}: '
                              'give one that trains and tests on the drawn shapes, such as '
                              'configs/quickstart/mask-rcnn_sa-r50_fpn_shapes.py')
    check_epochs(config)
    root = config.train_dataloader.dataset.get('data_root') or ''
    problem = folder_problem(Path(root)) if root else 'no folder is given'
    if problem:
        raise ConfigError(f'train_dataloader.dataset.data_root={root}: {problem}. '
                          'Choose a folder to draw the data set in')
    for path in Path(config.work_dir).glob('*.py'):  # MMEngine's copy of the config
        changed = list(differing_keys(read_config(path).get('model'), config.model.to_dict()))
        if changed:
            raise ConfigError(f'{config.work_dir} was started with the model of {path}: '
                              f'{listed(changed)} changed. Give another --work-dir, or remove it')


def run_quickstart(config: Config, min_ap: float, pictures: int = 4) -> bool:
    """Train, or resume the training in the work dir, and report on held-out images.

    Args:
        config: the detector's config, with ``data_root`` in its data sets and ``work_dir`` set.
        min_ap: the COCO bbox and segm AP, in [0, 1], that the detector must reach.
        pictures: the number of test images to draw.

    Returns:
        Whether both APs reach ``min_ap``.
    """
    refuse_code()
    generate_shapes(config.train_dataloader.dataset.data_root)
    config.resume = True
    config.train_cfg.val_begin = config.train_cfg.max_epochs + 1  # evaluated once, at the end
    runner = Runner.from_cfg(config)
    runner.train()
    # CocoMetric reports nothing if there are no detections.
    metrics = collections.defaultdict(float, runner.test())
    print_metrics(metrics)
    path = Path(config.work_dir) / 'predictions.png'
    draw_test_images(runner, pictures, path)
    print(f'ground truth (left) and predictions (right): {path}')

    reached = [metrics[f'coco/{task}_mAP'] >= min_ap for task in ('bbox', 'segm')]
    if not all(reached):
        print(f'AP is below the minimum of {min_ap}: something is wrong with this installation')
    return all(reached)


def print_metrics(metrics: dict[str, float]) -> None:
    """Print COCO's AP of boxes and masks as a table."""
    table = Table('', *(name.replace('mAP', 'AP').replace('_', '') for name in METRICS))
    for task in ('bbox', 'segm'):
        table.add_row(task, *(f'{metrics[f"coco/{task}_{name}"]:.3f}' for name in METRICS))
    Console().print(table)


def draw_test_images(runner: Runner, count: int, path: Path) -> None:
    """Draw ``count`` test images, ground truth next to predictions, into a PNG at ``path``."""
    dataset = runner.test_dataloader.dataset
    runner.model.eval()
    rows = []
    for item in itertools.islice(dataset, count):
        with torch.no_grad():
            sample, = runner.model.test_step(pseudo_collate([item]))
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        rows.append(draw_predictions(image, sample, dataset.metainfo, threshold=0.5))
    write_atomically(path, encode(np.concatenate(rows)))
