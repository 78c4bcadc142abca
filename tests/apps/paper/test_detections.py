"""Detections from COCO's files, drawn."""
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sa_mmdet.apps.paper.benchmarks import coco
from sa_mmdet.apps.paper.benchmarks.coco import draw_detections

META = dict(classes=('dog', 'cat'), palette=[(255, 0, 0), (0, 0, 255)])
GREY, GAP = 200, 8


def object_(image, category, box, **fields):
    x, y, w, h = box
    return dict(image_id=image, category_id=category, bbox=list(box), area=w * h, iscrowd=0,
                segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]) | fields


def detection(image, category, box, score, mask=False):
    found = dict(image_id=image, category_id=category, bbox=list(box), score=score)
    if mask:
        x, y, w, h = box
        pixels = np.zeros((240, 320), np.uint8, order='F')
        pixels[y:y + h, x:x + w] = 1
        rle = coco_mask.encode(pixels)
        found['segmentation'] = rle | dict(counts=rle['counts'].decode())
    return found


@pytest.fixture
def files(tmp_path):
    """Three images, the first without objects, the last narrower, and their annotations."""
    sizes = {1: (240, 320), 2: (240, 320), 3: (240, 200)}
    (tmp_path / 'images').mkdir()
    for id_, shape in sizes.items():
        cv2.imwrite(str(tmp_path / f'images/{id_}.png'), np.full((*shape, 3), GREY, np.uint8))
    objects = [object_(2, 18, (20, 150, 80, 60)), object_(3, 17, (60, 60, 80, 80)),
               object_(2, 99, (200, 20, 50, 50))]
    (tmp_path / 'annotations.json').write_text(json.dumps(dict(
        images=[dict(id=id_, file_name=f'{id_}.png', height=h, width=w)
                for id_, (h, w) in sizes.items()],
        annotations=[o | dict(id=number) for number, o in enumerate(objects, start=1)],
        categories=[dict(id=17, name='cat'), dict(id=18, name='dog'), dict(id=99, name='cow')])))
    return tmp_path


def draw(files, found, **options):
    (files / 'detections.json').write_text(json.dumps(found))
    return draw_detections(files / 'annotations.json', files / 'images',
                           files / 'detections.json', META, **options).astype(int)


@pytest.mark.parametrize('mask', [False, True], ids=['boxes', 'masks'])
def test_ground_truth_and_detections(files, mask):
    drawn = draw(files, [detection(2, 17, (220, 60, 60, 60), 0.9, mask),
                         detection(2, 17, (20, 60, 60, 60), 0.1, mask)])
    assert drawn.shape == (240 + GAP + 240, 320 + GAP + 320, 3)
    first, second = drawn[:240], drawn[240 + GAP:]
    truth, found = first[:, :320], first[:, 320 + GAP:]
    assert (truth[:130] == GREY).all()  # the cow is none of the classes
    assert (truth[150:210, 20:100] != GREY).any()
    assert (found[:, :180] == GREY).all()  # under the threshold
    red, _, blue = found[118:122, 240:270].reshape(-1, 3).mean(0)
    assert blue > red  # a cat
    assert ((found[80:110, 240:260] != GREY).all()) == mask
    assert (second[:, 400 + GAP:] == 255).all()  # narrower, on white
    assert (second[:, 200 + GAP:400 + GAP] == GREY).all()  # nothing is detected


def test_ground_truth_has_no_scores(files, monkeypatch):
    """They would stand beside its classes."""
    samples = []
    monkeypatch.setattr(coco, 'draw_predictions', lambda image, sample, *_: (
        samples.append(sample) or image))
    draw(files, [detection(2, 17, (220, 60, 60, 60), 0.9)])
    assert all('scores' not in sample.gt_instances for sample in samples)
    assert samples[0].pred_instances.scores.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize('without', [
    dict(segmentation=[]), dict(segmentation=[[]]), dict(segmentation=None), {},
    dict(segmentation=dict(size=[24, 32], counts=[100, 668]))], ids=str)
def test_ground_truth_without_masks_and_of_other_images(files, without):
    content = json.loads((files / 'annotations.json').read_text())
    for annotation in content['annotations']:
        del annotation['segmentation']
        annotation.update(without)
    content['annotations'].append(object_(0, 18, (20, 150, 80, 60)) | dict(id=4))
    (files / 'annotations.json').write_text(json.dumps(content))
    truth = draw(files, [], count=1)[:, :320]
    assert (truth[150, 30:90] != GREY).any()
    assert (truth[185:200, 40:80] == GREY).all()  # no mask


def test_as_many_images_as_wanted(files):
    assert draw(files, [], count=1).shape == (240, 648, 3)
