"""A small data set in COCO's format with a detector's config for it, to be changed by a test."""
import json
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config

CLASSES = ('cat', 'dog', 'bird')
SIZE = 48, 64  # height and width of an image
SQUARE = [[4, 4, 20, 4, 20, 20, 4, 20]]


def thing(id_, image=1, category=1, **change) -> dict:
    """An object, of which a value of None takes its key away."""
    entry = dict(id=id_, image_id=image, category_id=category, bbox=[4, 4, 16, 16], area=256,
                 iscrowd=0, segmentation=SQUARE) | change
    return {key: value for key, value in entry.items() if value is not None}


def content(classes=CLASSES, objects=None) -> dict:
    """What a file of annotations has: two images, and an object of each class in the first."""
    if objects is None:
        objects = [thing(i, category=i) for i in range(1, len(classes) + 1)]
    return dict(
        images=[dict(id=i, file_name=f'{i}.png', height=SIZE[0], width=SIZE[1]) for i in (1, 2)],
        annotations=objects,
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, start=1)])


class Made:
    """The contents of the files, and the config.

    Attributes:
        root: the folder of the data.
        missing: names of images that are not written.
        encoding: of the files.
        files: content of a file by its name, 'train', 'val' or others, written by ``write``.
        config: of a RetinaNet, or of a Mask R-CNN ``with_masks``.
    """

    def __init__(self, root: Path, classes=CLASSES):
        self.root = root
        self.missing = set()
        self.encoding = 'utf-8'
        self.files = {split: content(classes) for split in ('train', 'val')}
        self.config = Config(dict(
            model=dict(type='RetinaNet', bbox_head=dict(type='RetinaHead', num_classes=3)),
            default_scope='mmdet', **{
                f'{split}_dataloader': dict(dataset=self.dataset(split))
                for split in self.files},
            val_evaluator=dict(type='CocoMetric', metric='bbox', ann_file=f'{root}/val.json')))

    def dataset(self, name: str, **change) -> dict:
        """The config of a data set."""
        return dict(type='CocoDataset', data_root=str(self.root), ann_file=f'{name}.json',
                    data_prefix=dict(img='images/'), metainfo=dict(classes=CLASSES),
                    pipeline=[dict(type='LoadAnnotations', with_bbox=True)]) | change

    @property
    def train(self) -> dict:
        return self.files['train']

    @property
    def val(self) -> dict:
        return self.files['val']

    @property
    def sets(self) -> list:
        """Return the configs of both data sets."""
        return [self.config[f'{split}_dataloader'].dataset for split in ('train', 'val')]

    def with_masks(self) -> None:
        heads = dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3))
        self.config.model = dict(type='MaskRCNN', roi_head=heads)
        self.config.val_evaluator.metric = ['bbox', 'segm']
        for dataset in self.sets:
            dataset.pipeline = [dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]

    def image(self, name: str, array=None) -> None:
        path = self.root / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.full((*SIZE, 3), 128, np.uint8) if array is None else array
        path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())

    def write(self) -> None:
        """Write the files, and each of their images that is not there yet."""
        (self.root / 'images').mkdir(parents=True, exist_ok=True)
        for name, annotations in self.files.items():
            (self.root / f'{name}.json').write_text(json.dumps(annotations), self.encoding)
            for image in annotations['images']:
                path = self.root / 'images' / image['file_name']
                if not path.exists() and image['file_name'] not in self.missing:
                    self.image(image['file_name'])
