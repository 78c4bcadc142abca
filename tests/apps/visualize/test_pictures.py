"""Which images are looked at, and what a detector finds in them."""
import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData

from sa_mmdet.apps.validate.config import ConfigError
from sa_mmdet.apps.visualize.pictures import detect, find_images


def predicts(**fields):
    sample = DetDataSample()
    for name, value in fields.items():
        setattr(sample, name, value)
    return lambda inputs, samples, mode: [sample]


def test_boxes_are_those_of_masks_where_there_are_no_others():
    """SOLO's are zeros; the best comes first, with its own."""
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4:8, 0:2] = True
    found = detect(predicts(pred_instances=InstanceData(
        bboxes=torch.zeros(2, 4), scores=torch.tensor([.2, .7]), masks=masks)), None, None)
    assert found.pred_instances.bboxes.tolist() == [[0, 4, 2, 8], [2, 1, 6, 3]]


def test_of_a_model_that_finds_no_objects():
    model = predicts(pred_panoptic_seg=PixelData(sem_seg=torch.zeros(1, 4, 4)))
    with pytest.raises(ConfigError, match='predicts pred_panoptic_seg, not single objects: give'):
        detect(model, None, None)


def test_a_folder_called_like_an_image_is_none(tmp_path):
    (tmp_path / 'a.jpg').mkdir()
    cv2.imwrite(str(tmp_path / 'b.jpg'), np.zeros((4, 4, 3), np.uint8))
    assert find_images(tmp_path, 2) == [tmp_path / 'b.jpg']


def test_a_link_to_nothing(tmp_path):
    (tmp_path / 'a.jpg').symlink_to(tmp_path / 'b.jpg')
    with pytest.raises(ConfigError, match=r'a\.jpg does not exist: give another image'):
        find_images(tmp_path, 1)
