"""What several tests of pictures share."""
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample

from networks import VISIBLE
from sa_mmdet.apps.visualize.pictures import Picture


@pytest.fixture
def picture():
    image = np.random.default_rng(0).integers(0, 255, (*VISIBLE, 3), np.uint8)
    sample = DetDataSample(metainfo=dict(
        img_shape=VISIBLE, ori_shape=VISIBLE, scale_factor=(1., 1.), img_id=0))
    inputs = torch.from_numpy(image).permute(2, 0, 1)
    return Picture(Path('noise.png'), image, dict(inputs=inputs, data_samples=sample))
