"""No config of MMDetection's zoo is refused, or warned of, with data that fits it."""
import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from made import SQUARE, thing
from sa_mmdet.apps.validate.coco import coco_problems
from sa_mmdet.apps.validate.config import datasets_below
from sa_mmdet.apps.validate.dataset import dataset_meta, is_coco
from sa_mmdet.apps.validate.evaluation import evaluators_of
from zoo.families import ZOO

SPLITS = 'train', 'val', 'test'
CONFIGS = sorted(path for path in ZOO.rglob('*.py')
                 if not any(part.startswith('_') for part in path.relative_to(ZOO).parts))


@pytest.mark.parametrize('half', [0, 1], ids=['even', 'odd'])
def test_every_config(tmp_path, half):
    cv2.imwrite(str(tmp_path / '1.jpg'), np.full((64, 64, 3), 128, np.uint8))
    checked = 0
    for path in CONFIGS[half::2]:
        if config := read(path):
            splits = [split for split in SPLITS if f'{split}_dataloader' in config]
            given = [give_data(config, split, tmp_path) for split in splits]
            if any(given):
                assert list(coco_problems(config, tuple(splits))) == [], path
                checked += 1
    assert checked > 300


def read(path: Path) -> Config | None:
    """A config, or None where it needs what is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            config = Config.fromfile(path)
    except (ImportError, FileNotFoundError):
        return None
    init_default_scope(config.get('default_scope') or 'mmdet')
    return config


def give_data(config: Config, split: str, root: Path) -> bool:
    """Give the data sets of a split annotations that fit; whether one is read as COCO's are."""
    datasets = [dataset for dataset in datasets_below(config[f'{split}_dataloader'])
                if 'ann_file' in dataset]
    for dataset in datasets:
        prefixes = dict.fromkeys(dataset.get('data_prefix') or {}, str(root))
        dataset.update(data_root='', data_prefix=prefixes)
        dataset.ann_file = annotations(dataset_meta(dataset)['classes'] or ['thing'], root)
    for evaluator in evaluators_of(config, split):
        if evaluator.get('ann_file'):
            evaluator.ann_file = datasets[0].ann_file
    return any(map(is_coco, datasets))


def annotations(classes: list[str], root: Path) -> str:
    """A file with an image, in which there is an object of each class."""
    content = dict(
        images=[dict(id=1, file_name='1.jpg', height=64, width=64)],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, start=1)],
        annotations=[thing(i, category=i, segmentation=SQUARE)
                     for i in range(1, len(classes) + 1)])
    path = root / f'{abs(hash(tuple(classes)))}.json'
    if not path.exists():
        path.write_text(json.dumps(content))
    return str(path)
