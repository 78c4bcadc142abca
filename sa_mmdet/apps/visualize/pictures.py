"""The images that a detector gets, and what it finds in them."""
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import mask2bbox
from mmdet.utils import get_test_pipeline_cfg
from mmdet.utils.misc import IMG_EXTENSIONS
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..validate.config import ConfigError
from .predictions import read_image


@dataclass(frozen=True)
class Picture:
    """An original image, and what a detector gets.

    Attributes:
        path: path of the file.
        image: (H, W, 3) uint8, RGB.
        item: output of the detector's test pipeline: 'inputs' and 'data_samples'.
    """

    path: Path
    image: np.ndarray
    item: dict


def find_images(source: Path, count: int) -> list[Path]:
    """Return an image, or the first ``count`` images of a folder, by name.

    Raises:
        ConfigError: The path does not exist, the folder has no image, or an image is damaged.
    """
    if not source.exists():
        raise ConfigError(f'{source} does not exist: give an image, or a folder of images')
    images = [source]
    if source.is_dir():
        images = sorted(path for path in source.iterdir()
                        if path.suffix.lower() in IMG_EXTENSIONS and not path.is_dir())
        if not images:
            raise ConfigError(f'{source} has no image ({", ".join(IMG_EXTENSIONS)}): give another '
                              'folder, or one image')
    for path in images[:count]:
        read_image(path)
    return images[:count]


def pictures_of_files(config: Config, paths: list[Path]) -> Iterator[Picture]:
    """Yield images for the detector of a config."""
    init_default_scope(config.get('default_scope') or 'mmdet')
    pipeline = Compose([step for step in get_test_pipeline_cfg(config)
                        if 'Annotations' not in str(step['type'])])  # files have none
    for number, path in enumerate(paths):
        item = pipeline(dict(img_path=str(path), img_id=number))
        yield Picture(path, read_image(path), item)


def pictures_of_dataset(config: Config, count: int) -> Iterator[Picture]:
    """Yield the first ``count`` images of a config's test data set, with their ground truth."""
    init_default_scope(config.get('default_scope') or 'mmdet')
    dataset = DATASETS.build(config.test_dataloader.dataset)
    for item in itertools.islice(dataset, count):
        path = Path(item['data_samples'].img_path)
        yield Picture(path, read_image(path), item)


def prepare(model: nn.Module, picture: Picture) -> tuple[Tensor, list[DetDataSample]]:
    """Return a batch of one image: (1, 3, H, W) normalised and padded, and its data sample."""
    data = model.data_preprocessor(pseudo_collate([picture.item]), False)
    return data['inputs'], data['data_samples']


def visible_shape(sample: DetDataSample) -> tuple[int, int]:
    """Return rows and columns of a detector's input that show the image, without padding of the
    batch or of the test pipeline, which ``img_shape`` includes."""
    across, down = sample.get('scale_factor', (1., 1.))
    height, width = sample.ori_shape[:2]
    return round(height * down), round(width * across)


def detect(model: nn.Module, inputs: Tensor, samples: list[DetDataSample]) -> DetDataSample:
    """Return what a detector finds in an image, best first; scores have gradients of ``inputs``.

    Raises:
        ConfigError: The model predicts no single objects.
    """
    sample, = model(inputs, samples, mode='predict')
    if 'pred_instances' not in sample:
        predicted = [name for name, _ in sample.items() if name.startswith('pred_')]
        raise ConfigError(f'{type(model).__name__} predicts {", ".join(predicted)}, not single '
                          'objects: give the config of a detector')
    found = sample.pred_instances
    if 'masks' in found and not found.bboxes.any():  # as in SOLO
        found.bboxes = mask2bbox(found.masks)
    sample.pred_instances = found[found.scores.argsort(descending=True)]
    return sample


@torch.no_grad()
def predict(model: nn.Module, picture: Picture) -> DetDataSample:
    """Return what a detector finds in an image, best first, on the CPU; boxes are in its pixels."""
    return detect(model, *prepare(model, picture)).cpu()
