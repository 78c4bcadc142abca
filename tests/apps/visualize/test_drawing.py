"""Colours, pages and predictions: what a picture shows is what was computed."""
import base64
import re

import cv2
import numpy as np
import pytest
import torch
from matplotlib.colors import CenteredNorm, Normalize
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from sa_mmdet.apps.visualize.heat_maps import overlay, without_padding
from sa_mmdet.apps.visualize.page import Drawing, Section, write_page
from sa_mmdet.apps.visualize.predictions import draw_predictions, encode

META = dict(classes=('cat', 'dog'), palette=[(255, 0, 0), (0, 0, 255)])


def test_overlay_is_brighter_where_the_map_is_higher():
    image = np.full((40, 60, 3), 128, np.uint8)
    values = torch.tensor([[0., 0.5, 1.]])
    drawn = overlay(image, values, Normalize(0, 1)).astype(int).sum(2)
    assert drawn.shape == (40, 60)
    left, middle, right = drawn[20, [3, 30, 56]]
    assert left < middle < right
    assert overlay(image, values, Normalize(0, 1), width=30).shape == (20, 30, 3)


def test_overlay_of_a_map_with_a_middle():
    """Above the middle it is orange, below purple, and without colour at it."""
    image = np.full((10, 30, 3), 128, np.uint8)
    drawn = overlay(image, torch.tensor([[0.2, 0.5, 0.8]]), CenteredNorm(0.5, 0.3)).astype(int)
    (low_r, _, low_b), middle, (high_r, _, high_b) = drawn[5, [2, 15, 27]]
    assert np.ptp(middle) < 15 < min(low_b - low_r, high_r - high_b)


def test_without_padding():
    """The batch's, and that which the test pipeline added."""
    sample = DetDataSample(metainfo=dict(
        ori_shape=(24, 10), scale_factor=(2., 2.), img_shape=(56, 56), batch_input_shape=(64, 64)))
    values = torch.arange(64.).reshape(1, 8, 8)
    assert torch.equal(without_padding(values, sample), values[:, :6, :2])


@pytest.fixture
def sample():
    """A cat on the left, with a mask, and a dog on the right, without."""
    masks = torch.zeros(2, 240, 320, dtype=torch.bool)
    masks[0, 60:120, 60:120] = True
    found = InstanceData(
        bboxes=torch.tensor([[60., 60., 120., 120.], [200., 60., 300., 200.]]),
        labels=torch.tensor([0, 1]), scores=torch.tensor([.9, .4]), masks=masks)
    return DetDataSample(pred_instances=found)


IMAGE = np.full((240, 320, 3), 200, np.uint8)


def test_predictions_from_the_threshold_on(sample):
    both = draw_predictions(IMAGE, sample, META, threshold=0.3)
    one = draw_predictions(IMAGE, sample, META, threshold=0.5)
    assert both.shape == one.shape == IMAGE.shape
    assert (one[:, 180:] == 200).all()
    assert (both[200, 200:300] != 200).any()
    assert (one[100, 90] != 200).any()
    assert 'label_names' not in sample.pred_instances


def test_more_classes_than_colours(sample):
    """As CocoDataset's 80, where a config names more classes."""
    drawn = draw_predictions(IMAGE, sample, META | dict(palette=[(255, 0, 0)]), threshold=0.3)
    assert (drawn[200, 200:300] != 200).any()


def test_ground_truth_beside_predictions(sample):
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[20., 160., 100., 220.]]), labels=torch.tensor([1]),
        masks=BitmapMasks(np.zeros((1, 240, 320), np.uint8), 240, 320))
    drawn = draw_predictions(IMAGE, sample, META, threshold=0.3, numbered=True)
    assert drawn.shape == (240, 648, 3)
    truth, predictions = drawn[:, :320], drawn[:, 328:]
    assert (truth[220, 20:100] != 200).any()
    assert (truth[:130] == 200).all()
    assert (predictions[210:] == 200).all()
    assert (predictions[60:120] != 200).any()

    sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    assert draw_predictions(IMAGE, sample, META, threshold=0.3).shape == (240, 648, 3)


def test_page_holds_its_pictures(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    flat = np.full((40, 50, 3), 255, np.uint8)
    write_page(tmp_path / 'page.html', 'A < B', {'config': '<b>'}, [
        Section('one & two', [Drawing('noise', encode(noise), 'cap"tion', 600),
                              Drawing('flat', encode(flat), 'flat')], ['no <dog>'])])
    page = (tmp_path / 'page.html').read_text()
    pictures = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', page)
    kinds, contents = zip(*pictures, strict=True)
    assert kinds[0] == 'webp'
    for content, image in zip(contents, (noise, flat), strict=True):
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8),
                               cv2.IMREAD_COLOR)
        assert decoded.shape == image.shape
        assert abs(decoded.mean() - image.mean()) < 2
    for text in ('A &lt; B', '&lt;b&gt;', 'one &amp; two', 'cap&quot;tion', 'no &lt;dog&gt;'):
        assert text in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert [path.name for path in tmp_path.iterdir()] == ['page.html']
