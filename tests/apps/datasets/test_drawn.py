"""The drawn data sets: COCO's format, written whole and once, and what the annotations say is seen.
"""
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sa_mmdet.apps.datasets import coco_folder, shapes, textured
from sa_mmdet.apps.datasets.shapes import generate_shapes


def write_simple(root, train=6, val=4, size=64, seed=3):
    generate_shapes(root, train, val, size, seed)


def write_textured(root, train=6, val=4, seed=3):
    textured.textured_shapes(train, val, seed).write(root)


KINDS = pytest.mark.parametrize('write', [write_simple, write_textured])


def read_all(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*.*')}


@pytest.mark.parametrize(('write', 'size', 'classes'), [
    (write_simple, 64, shapes.CLASSES), (write_textured, 256, textured.CLASSES)])
def test_is_a_coco_data_set(tmp_path, write, size, classes):
    write(tmp_path / 'shapes')
    coco = COCO(tmp_path / 'shapes/annotations/train.json')
    assert len(coco.imgs) == 6
    assert [c['name'] for c in coco.cats.values()] == list(classes)
    for image in coco.imgs.values():
        pixels = cv2.imread(str(tmp_path / 'shapes/train' / image['file_name']))
        assert pixels.shape == (size, size, 3)
        assert coco.imgToAnns[image['id']]
        for annotation in coco.imgToAnns[image['id']]:
            mask = coco.annToMask(annotation).astype(bool)
            assert mask.sum() == pytest.approx(annotation['area'], rel=0.2)
            x, y, w, h = annotation['bbox']
            rows, columns = np.nonzero(mask)
            assert rows.min() >= y - 1
            assert rows.max() <= y + h + 1
            assert columns.min() >= x - 1
            assert columns.max() <= x + w + 1


def test_shapes_have_one_colour(tmp_path):
    write_simple(tmp_path / 'shapes')
    coco = COCO(tmp_path / 'shapes/annotations/train.json')
    for annotation in coco.anns.values():
        pixels = cv2.imread(str(tmp_path / f'shapes/train/{annotation["image_id"]:06d}.png'))
        colours = pixels[coco.annToMask(annotation).astype(bool)]
        assert (colours == np.median(colours, 0)).all(1).mean() > 0.8


def test_textured_shapes_are_hard_in_the_ways_that_are_told():
    """Sizes from 8 to 128 pixels, all classes, and parts that others hide."""
    rng = np.random.default_rng(0)
    drawn = [textured.draw_image(rng) for _ in range(60)]
    objects = [annotation for _, found in drawn for annotation in found]
    assert {o['category_id'] for o in objects} == set(range(1, 9))
    sizes = [max(o['bbox'][2:]) for o in objects]
    assert min(sizes) < 30
    assert 100 < max(sizes) <= 130
    masks = [[coco_mask.decode(o['segmentation']).astype(int) for o in found] for _, found in drawn]
    assert all(sum(masks_of).max() == 1 for masks_of in masks if masks_of)  # each pixel is of one
    fill = [o['area'] / (o['bbox'][2] * o['bbox'][3]) for o in objects
            if textured.CLASSES[o['category_id'] - 1].endswith('circle')]
    assert max(fill) == pytest.approx(np.pi / 4, abs=0.1)
    assert min(fill) < 0.7  # something lies over it


@pytest.mark.parametrize(('texture', 'colours'), [('plain', 1), ('striped', 2), ('dotted', 2)])
def test_textures_have_contrast(texture, colours):
    for seed in range(20):
        pattern = textured._pattern(np.random.default_rng(seed), texture, period=12)
        found = np.unique(pattern.reshape(-1, 3), axis=0)
        assert len(found) == colours
        assert colours == 1 or np.abs(found[0] - found[1]).min() > 39


@KINDS
def test_same_settings_same_files(tmp_path, write):
    write(tmp_path / 'a')
    write(tmp_path / 'b')
    write(tmp_path / 'c', seed=4)
    assert read_all(tmp_path / 'a') == read_all(tmp_path / 'b')
    assert read_all(tmp_path / 'a') != read_all(tmp_path / 'c')


@KINDS
def test_splits_differ(tmp_path, write):
    write(tmp_path / 'a', train=2, val=2)
    train, val = (json.loads((tmp_path / f'a/annotations/{s}.json').read_text())
                  for s in ('train', 'val'))
    assert train['annotations'] != val['annotations']


@KINDS
def test_is_written_once_and_never_over_something_else(tmp_path, write):
    root = tmp_path / 'shapes'
    write(root)
    written = (root / 'val/000001.png').stat().st_mtime_ns
    write(root)
    assert (root / 'val/000001.png').stat().st_mtime_ns == written
    with pytest.raises(FileExistsError, match=r"shapes exists, but is not .*'val': 5"):
        write(root, val=5)
    (root / 'settings.json').write_text('{')
    with pytest.raises(FileExistsError, match='choose another folder'):
        write(root)


@pytest.mark.parametrize('lost', ['val/000001.png', 'annotations/train.json'])
def test_what_is_lost_is_told(tmp_path, lost):
    root = tmp_path / 'shapes'
    write_simple(root)
    (root / lost).unlink()
    with pytest.raises(FileExistsError, match=f'{lost} is missing or damaged: remove {root}'):
        write_simple(root)


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    root = tmp_path / 'shapes'
    with monkeypatch.context() as patch:
        patch.setattr(coco_folder.cv2, 'imwrite', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_simple(root)
    assert not root.exists()
    write_simple(root)
    assert COCO(root / 'annotations/val.json').imgs.keys() == {1, 2, 3, 4}
    assert [path.name for path in tmp_path.iterdir()] == ['shapes']


def test_an_image_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_folder.cv2, 'imwrite', lambda *_: False)
    with pytest.raises(OSError, match=r'000001\.png could not be written: is the disk full'):
        write_simple(tmp_path / 'shapes')
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / 'shapes').mkdir()
    write_simple(tmp_path / 'shapes')
    assert (tmp_path / 'shapes/settings.json').is_file()


def test_two_processes_that_draw_at_once(tmp_path, monkeypatch):
    write = coco_folder.cv2.imwrite

    def imwrite(*args):  # the other one begins, and ends first
        monkeypatch.setattr(coco_folder.cv2, 'imwrite', write)
        write_simple(tmp_path / 'shapes')
        return write(*args)
    monkeypatch.setattr(coco_folder.cv2, 'imwrite', imwrite)
    write_simple(tmp_path / 'shapes')
    assert [path.name for path in tmp_path.iterdir()] == ['shapes']
    assert len(list((tmp_path / 'shapes/train').iterdir())) == 6
