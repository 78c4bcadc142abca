"""What a detector finds, by what it predicts."""
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData

from sa_mmdet.configuration import ConfigError
from sa_mmdet.visualization.pictures import detect


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
    with pytest.raises(ConfigError, match='finds no single objects, but pred_panoptic_seg: give'):
        detect(model, None, None)
