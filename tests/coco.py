"""Small data sets in COCO's own layout."""
import json
from pathlib import Path

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
