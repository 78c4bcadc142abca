"""Small data sets in ImageNet's layout, and options with which its configs run on them."""
from pathlib import Path

import cv2
import numpy as np

CONFIGS = Path(__file__).parents[1] / 'configs'
CLASSES = 6


def generate_images(root: Path, classes: int = CLASSES, train: int = 2, val: int = 1) -> Path:
    """Noise of a tint for each class, so many images of each."""
    generator = np.random.default_rng(0)
    for split, images in (('train', train), ('val', val)):
        for label in range(classes):
            folder = root / split / f'n{label:08d}'
            folder.mkdir(parents=True)
            for index in range(images):
                image = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                image[..., label % 3] = 255 * label // classes
                cv2.imwrite(str(folder / f'{split}_{index}.JPEG'), image)
    return root


def config_of(row: str) -> Path:
    return CONFIGS / f'imagenet/{row}_8xb32_in1k.py'


def small_options(epochs: int = 1) -> dict:
    """Overrides with which a config runs in seconds, on as many classes as are generated."""
    options = {
        'model.head.num_classes': CLASSES, 'train_cfg.max_epochs': epochs,
        'optim_wrapper.optimizer.lr': 0.001, 'default_hooks.logger.interval': 1,
        'train_dataloader.batch_size': 4, 'train_dataloader.dataset.pipeline.1.scale': 64}
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.num_workers'] = 0
        options[f'{split}_dataloader.persistent_workers'] = False
        options[f'{split}_dataloader.dataset.metainfo.classes'] = list(map(str, range(CLASSES)))
    for split in ('val', 'test'):
        options[f'{split}_dataloader.dataset.pipeline.1.scale'] = 72
        options[f'{split}_dataloader.dataset.pipeline.2.crop_size'] = 64
    return options


def as_arguments(options: dict) -> list[str]:
    """Of the command line."""
    return ['--cfg-options', *(
        f'{key}={",".join(value) if isinstance(value, list) else value}'
        for key, value in options.items())]
