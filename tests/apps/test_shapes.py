import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from sa_mmdet.apps.quickstart.shapes import CLASSES, generate_shapes

SETTINGS = dict(train=6, val=4, size=64, seed=3)


def read_all(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*.*')}


def test_is_a_coco_data_set(tmp_path):
    generate_shapes(tmp_path / 'shapes', **SETTINGS)
    coco = COCO(tmp_path / 'shapes/annotations/train.json')
    assert len(coco.imgs) == 6
    assert [c['name'] for c in coco.cats.values()] == list(CLASSES)
    for image in coco.imgs.values():
        pixels = cv2.imread(str(tmp_path / 'shapes/train' / image['file_name']))
        assert pixels.shape == (64, 64, 3)
        annotations = coco.imgToAnns[image['id']]
        assert annotations
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            assert mask.sum() == pytest.approx(annotation['area'], rel=0.2)
            x, y, w, h = annotation['bbox']
            rows, columns = np.nonzero(mask)
            assert rows.min() >= y - 1
            assert rows.max() <= y + h + 1
            assert columns.min() >= x - 1
            assert columns.max() <= x + w + 1
            colours = pixels[mask]
            assert (colours == np.median(colours, 0)).all(1).mean() > 0.8


def test_same_settings_same_files(tmp_path):
    generate_shapes(tmp_path / 'a', **SETTINGS)
    generate_shapes(tmp_path / 'b', **SETTINGS)
    generate_shapes(tmp_path / 'c', **SETTINGS | dict(seed=4))
    assert read_all(tmp_path / 'a') == read_all(tmp_path / 'b')
    assert read_all(tmp_path / 'a') != read_all(tmp_path / 'c')


def test_splits_differ(tmp_path):
    generate_shapes(tmp_path / 'a', train=2, val=2, size=64)
    train, val = (json.loads((tmp_path / f'a/annotations/{s}.json').read_text())
                  for s in ('train', 'val'))
    assert train['annotations'] != val['annotations']


def test_is_written_once_and_never_over_something_else(tmp_path):
    root = tmp_path / 'shapes'
    generate_shapes(root, **SETTINGS)
    (root / 'val/000001.png').unlink()
    generate_shapes(root, **SETTINGS)
    assert not (root / 'val/000001.png').exists()
    with pytest.raises(FileExistsError, match=r"shapes exists and is not .*'size': 96"):
        generate_shapes(root, **SETTINGS | dict(size=96))


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    import sa_mmdet.apps.quickstart.shapes as module
    root = tmp_path / 'shapes'
    with monkeypatch.context() as patch:
        patch.setattr(module.cv2, 'imwrite', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate_shapes(root, **SETTINGS)
    assert not root.exists()
    generate_shapes(root, **SETTINGS)
    assert COCO(root / 'annotations/val.json').imgs.keys() == {1, 2, 3, 4}
