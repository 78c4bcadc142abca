"""Small data sets in COCO's own layout."""
import json
from pathlib import Path

import cv2
import numpy as np
from mmdet.datasets import CocoDataset

CONFIGS = Path(__file__).parents[1] / 'configs'


def small_coco(source: Path, root: Path, images: int) -> Path:
    """A data set in COCO's layout with the first images of another."""
    (root / 'annotations').mkdir(parents=True)
    for split in ('train2017', 'val2017'):
        content = json.loads((source / f'annotations/instances_{split}.json').read_text())
        content['images'] = content['images'][:images]
        ids = {image['id'] for image in content['images']}
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] in ids]
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))
        (root / split).symlink_to(source / split)
    return root


def drawn_coco(root: Path, classes: tuple[str, ...] = CocoDataset.METAINFO['classes']) -> Path:
    """The smallest data set in COCO's layout: in each split a grey image with one object."""
    (root / 'annotations').mkdir(parents=True)
    content = dict(
        images=[dict(id=1, file_name='000000000001.jpg', height=32, width=32)],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[4, 4, 16, 16], area=256,
                          segmentation=[[4, 4, 20, 4, 20, 20, 4, 20]], iscrowd=0)],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, start=1)])
    for split in ('train2017', 'val2017'):
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))
        (root / split).mkdir()
        cv2.imwrite(str(root / split / '000000000001.jpg'), np.full((32, 32, 3), 128, np.uint8))
    return root
