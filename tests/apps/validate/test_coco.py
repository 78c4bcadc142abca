"""The annotations of a command are read once, however many questions are asked of them."""
from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import Config

from coco import CONFIGS, drawn_coco
from sa_mmdet.apps.validate.coco import coco_problems, read_annotations

SPLITS = 'train', 'val', 'test'


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return drawn_coco(tmp_path / 'data/coco', [f'class {number}' for number in range(80)])


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, with how often."""
    counts, read = Counter(), Path.read_bytes
    monkeypatch.setattr(Path, 'read_bytes', lambda path: counts.update([path.name]) or read(path))
    return counts


def config():
    config = Config.fromfile(CONFIGS / 'mask_rcnn/mask-rcnn_sa-r50_fpn_1x_coco.py')
    classes = [f'class {number}' for number in range(80)]
    for split in SPLITS:
        config[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)
    return config


@pytest.mark.usefixtures('root')
@pytest.mark.parametrize('to_the_end', [False, True])
def test_each_file_is_read_once(reads, to_the_end):
    assert list(coco_problems(config(), SPLITS, to_the_end)) == []
    assert reads == {'instances_train2017.json': 1, 'instances_val2017.json': 1}


def test_a_changed_file_is_read_again(root, reads):
    path = root / 'annotations/instances_val2017.json'
    assert len(read_annotations(path).images) == 1
    path.write_text(path.read_text().replace('"images": [', '"images": [], "before": [', 1))
    assert len(read_annotations(path).images) == 0
    assert reads[path.name] == 2


def test_of_large_files_the_ends_are_looked_at(root, reads, monkeypatch):
    monkeypatch.setattr('sa_mmdet.apps.validate.coco.FULLY_READ', 100)
    assert list(coco_problems(config(), SPLITS)) == []
    path = root / 'annotations/instances_train2017.json'
    path.write_text(path.read_text()[:-1])
    problem, = coco_problems(config(), SPLITS)
    assert f'{path.name} is damaged' in problem
    assert not reads
