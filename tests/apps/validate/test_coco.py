"""What data sets and configs look like: what cannot be right is refused, all else passes."""
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset, ConcatDataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.dataset import RepeatDataset
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask

from made import CLASSES, SIZE, SQUARE, Made, content, thing
from sa_mmdet.apps.validate.annotations import read_annotations
from sa_mmdet.apps.validate.coco import coco_problems
from sa_mmdet.apps.validate.config import Doubt, without_doubts
from sa_mmdet.apps.validate.evaluation import evaluators_of
from sa_mmdet.apps.validate.labels import heads_of

SPLITS = 'train', 'val'


@pytest.fixture
def made(tmp_path):
    init_default_scope('mmdet')
    return Made(tmp_path / 'data')


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, with how often."""
    counts, read = Counter(), Path.read_bytes
    monkeypatch.setattr(Path, 'read_bytes', lambda path: counts.update([path.name]) or read(path))
    return counts


def problems(made, splits=SPLITS):
    made.write()
    return list(dict.fromkeys(coco_problems(made.config, splits)))


def case(name, *parts, splits=SPLITS):
    """A mistake, and what the message has to name; the function makes it."""
    def add(make):
        CASES.append(pytest.param(make, splits, parts, id=name))
        return make
    return add


def error(name, *parts, **options):
    return case(name, False, *parts, **options)


def doubt(name, *parts, **options):
    return case(name, True, *parts, **options)


CASES = []


def all_objects(made):
    return itertools.chain(*(some['annotations'] for some in made.files.values()))


def lists(made, key, value):
    """Give every object of both files a value, None for none."""
    for entry in all_objects(made):
        entry.pop(key) if value is None else entry.update({key: value})


def renamed(annotations, *names):
    annotations['categories'] = [dict(id=i, name=name) for i, name in enumerate(names, start=1)]


@error('no objects at all', 'train.json have 0 objects, and none to learn from')
def _(made):
    made.train['annotations'] = []


@error('crowds alone', 'none to learn from. 3 are crowds (iscrowd=1)')
def _(made):
    for entry in made.train['annotations']:
        entry['iscrowd'] = 1


@error('objects of other categories alone', 'have 1 objects', 'none to learn from')
def _(made):
    made.train['categories'].append(dict(id=9, name='horse'))
    made.train['annotations'] = [thing(1, category=9)]


@error('boxes as fractions of the image', '3 are smaller than a pixel')
def _(made):
    for entry in made.train['annotations']:
        entry['bbox'] = [0.1, 0.1, 0.5, 0.5]


@error('objects of images by other ids', '3 have an image_id that no image has')
def _(made):
    for entry in made.train['annotations']:
        entry['image_id'] = str(entry['image_id'])


@error('nothing left by a filter', "'min_size': 100", 'leave none')
def _(made):
    made.sets[0].filter_cfg = dict(filter_empty_gt=True, min_size=100)


@error('nothing left by indices', 'indices=0 leave none')
def _(made):
    made.sets[0].indices = 0


@error('objects in the other half alone', 'none to learn from')
def _(made):
    for entry in made.train['annotations']:
        entry['image_id'] = 2
    made.sets[0].indices = 1


@error('objects outside their image', 'none to learn from')
def _(made):
    for entry in made.train['annotations']:
        entry['bbox'] = [70, 4, 16, 16]


@error('nothing in two data sets', 'train.json, ', 'others.json have 0 objects')
def _(made):
    made.files['others'] = content(objects=[])
    made.train['annotations'] = []
    made.config.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[made.dataset('train'), made.dataset('others')])


@error('a comma forgotten', "metainfo.classes='cat'", "classes=('cat', )")
def _(made):
    for dataset in made.sets:
        dataset.metainfo.classes = ('cat')


@error('no such file of classes', "metainfo.classes='classes.txt' is neither a file")
def _(made):
    for dataset in made.sets:
        dataset.metainfo.classes = 'classes.txt'


@error('classes as MMDetection 2 had them', 'ignores metainfo.CLASSES', 'classes=(...)')
def _(made):
    for dataset in made.sets:
        dataset.metainfo = dict(CLASSES=CLASSES)


@error('no metainfo', 'has none of the 80 classes', "metainfo=dict(classes=('pear', 'fig', 'plum')")
def _(made):
    for split in SPLITS:
        renamed(made.files[split], 'pear', 'fig', 'plum')
        made.config[f'{split}_dataloader'].dataset.pop('metainfo')


@error('capital letters in classes', "did you mean 'cat'?", "classes=('cat', 'dog', 'bird')")
def _(made):
    for dataset in made.sets:
        dataset.metainfo.classes = ('Cat', 'dog', 'bird')


@error('fewer outputs than classes', 'model.bbox_head.num_classes=2, but', 'has 3 classes',
       'learned as background', '--cfg-options model.bbox_head.num_classes=3')
def _(made):
    made.config.model.bbox_head.num_classes = 2


@error('80 outputs for 3 classes', 'model.bbox_head.num_classes=80', 'val.json has 3 classes',
       'IndexError', '--cfg-options model.bbox_head.num_classes=3')
def _(made):
    made.config.model.bbox_head.num_classes = 80


@doubt('fewer outputs than are tested', 'num_classes=2', 'never found', splits=('val', ))
def _(made):
    made.config.model.bbox_head.num_classes = 2


@doubt('80 outputs, and no evaluation', 'model.bbox_head.num_classes=80', splits=('train', ))
def _(made):
    made.config.model.bbox_head.num_classes = 80


@error('one of two heads', 'model.roi_head.mask_head.num_classes=80, but')
def _(made):
    made.with_masks()
    made.config.model.roi_head.mask_head.num_classes = 80


@error('heads of a cascade', 'model.roi_head.bbox_head.1.num_classes=80, but')
def _(made):
    made.config.model = dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=80)]))


@error('classes in another order', "label 0 is 'cat' in ", 'train.json',
       "would be called 'dog', and 1 more", "classes=('cat', 'dog', 'bird')")
def _(made):
    for dataset in made.sets:
        dataset.metainfo.classes = ('dog', 'cat', 'bird')


@error('a class misspelt', "label 1 is 'bird'", "would be called 'dgo'", "did you mean 'dog'?",
       "classes=('cat', 'dog', 'bird')")
def _(made):
    for dataset in made.sets:
        dataset.metainfo.classes = ('cat', 'dgo', 'bird')


@error('the last class misspelt', 'val.json has no category for 1 of the 3 classes (brid)',
       "did you mean 'bird'?")
def _(made):
    for dataset in made.sets:
        dataset.metainfo.classes = ('cat', 'dog', 'brid')


@error('files in different orders', "label 0 is 'bird' in ", 'val.json', "called 'cat'")
def _(made):
    renamed(made.val, *reversed(CLASSES))


@error('data sets in different orders', "label 0 is 'cat' in ", "train.json, but 'bird' in ",
       'val.json')
def _(made):
    renamed(made.val, *reversed(CLASSES))
    made.sets[1].metainfo.classes = tuple(reversed(CLASSES))


@error('an evaluator with another order', "label 0 is 'bird' in ", 'other.json')
def _(made):
    made.files['other'] = content(tuple(reversed(CLASSES)))
    made.config.val_evaluator.ann_file = f'{made.root}/other.json'


@error('a category twice', "called 'dog'")
def _(made):
    renamed(made.train, 'cat', 'cat', 'dog', 'bird')


@error('categories that the evaluator sorts', "label 0 is 'cat' in ", "but would be called 'bird'")
def _(made):
    for annotations in made.files.values():
        annotations['categories'].reverse()
    for dataset in made.sets:
        dataset.metainfo.classes = tuple(reversed(CLASSES))
    made.config.val_evaluator.sort_categories = True


@error('an evaluator without a file, and nothing for it', 'val_evaluator has no ann_file',
       "add 'instances' to the meta_keys of PackDetInputs")
def _(made):
    del made.config.val_evaluator['ann_file']
    made.sets[1].pipeline.append(dict(type='PackDetInputs'))


@error("an id twice in the evaluator's file", 'other.json has 1 ids that more than one object has')
def _(made):
    made.files['other'] = content(objects=[thing(1), thing(1)])
    made.config.val_evaluator.ann_file = f'{made.root}/other.json'


@error("a box of three numbers in the evaluator's file", 'other.json has 1 objects without bbox')
def _(made):
    made.files['other'] = content(objects=[thing(1), thing(2, bbox=[1, 2, 3])])
    made.config.val_evaluator.ann_file = f'{made.root}/other.json'


@doubt('an object with the id 0', 'val.json has an object with the id 0', 'from 1')
def _(made):
    made.val['annotations'][0]['id'] = 0


@doubt('objects of unknown categories', '1 objects whose category_id is not in its categories')
def _(made):
    made.train['annotations'].append(thing(11, category=99))


@error('a byte order mark', 'train.json is damaged or not a COCO annotation file', 'BOM')
def _(made):
    made.encoding = 'utf-8-sig'


@error('an evaluator of the training', 'val_evaluator.ann_file: ', 'train.json has other image ids',
       '2 of 2 tested images are not in it')
def _(made):
    for image in made.train['images']:
        image['id'] += 10
    for entry in made.train['annotations']:
        entry['image_id'] += 10
    made.config.val_evaluator.ann_file = f'{made.root}/train.json'


@doubt('an evaluator of more images', '1 of the 3 images in ', 'are not tested')
def _(made):
    made.files['more'] = content()
    made.files['more']['images'].append(dict(id=3, file_name='3.png', height=48, width=64))
    made.config.val_evaluator.ann_file = f'{made.root}/more.json'


@doubt('an evaluator of other images with the same ids', 'such as other.png instead of 1.png')
def _(made):
    made.files['other'] = content()
    made.files['other']['images'][0]['file_name'] = 'other.png'
    made.config.val_evaluator.ann_file = f'{made.root}/other.json'


@doubt('a part of the images', '1 of the 2 images in ', 'are not tested')
def _(made):
    made.sets[1].indices = 1


@error('no iscrowd', 'val.json has 3 objects without iscrowd', 'the entry of 1.png')
def _(made):
    lists(made, 'iscrowd', None)


@error('no area', 'train.json has 3 objects without area', 'the entry of 1.png')
def _(made):
    lists(made, 'area', None)


@error('one box missing', 'train.json has 1 objects without bbox')
def _(made):
    del made.train['annotations'][1]['bbox']


@error('a box of three numbers', 'train.json has 1 objects that cannot be read (not enough values')
def _(made):
    made.train['annotations'][1]['bbox'] = [1, 2, 3]


@error('images without height', 'train.json has 2 images without height')
def _(made):
    for image in made.train['images']:
        del image['height']


@error('images without width', 'val.json has 1 images without width', 'the entry of 2.png')
def _(made):
    del made.val['images'][1]['width']


@error('an id of two objects', 'train.json has 1 ids that more than one object has, such as 1')
def _(made):
    made.train['annotations'].append(thing(1))


@error('an id of two images', 'val.json has 1 ids that more than one image has, such as 2')
def _(made):
    made.val['images'].append(dict(id=2, file_name='3.png', height=48, width=64))


@error('an id of two categories', 'several categories with the same id')
def _(made):
    made.config.model.bbox_head.num_classes = 4
    for annotations, dataset in zip(made.files.values(), made.sets, strict=True):
        annotations['categories'].append(dict(id=3, name='horse'))
        dataset.metainfo.classes = (*CLASSES, 'horse')


@error('ids of objects that are words', 'without a numeric id')
def _(made):
    for index, entry in enumerate(made.val['annotations']):
        entry['id'] = f'object {index}'


for name, value in (('no', None), ('an empty', []), ('a flat', SQUARE[0])):
    @error(f'{name} segmentation', 'train.json has 1 objects without a mask', 'with_mask=True')
    def _(made, value=value):
        made.with_masks()
        made.train['annotations'][2].update(segmentation=value)


@error('no outline to evaluate', 'without an outline in segmentation', 'bbox, segm')
def _(made):
    made.with_masks()
    made.val['annotations'][0]['segmentation'] = [[]]


@error('masks in a branch', 'train.json has 1 objects without a mask')
def _(made):
    made.train['annotations'][0]['segmentation'] = []
    made.sets[0].pipeline = [dict(type='MultiBranch', sup=[dict(with_mask=True)])]


@doubt('no objects to evaluate', 'val.json has no objects of the evaluated classes',
       'every AP will be -1')
def _(made):
    made.val['annotations'] = []


@doubt('no objects to evaluate, without a file', 'val.json has no objects', 'AP will be -1')
def _(made):
    made.val['annotations'] = []
    made.config.val_evaluator.ann_file = None


@doubt('images of another size', '1 of 2 images', '2.png: it is read as 30x20, but', '64x48')
def _(made):
    made.image('2.png', np.zeros((20, 30, 3), np.uint8))


@doubt('turned images', '48x64, turned by its EXIF orientation, but its entry says 64x48')
def _(made):
    exif = Image.Exif()
    exif[0x0112] = 6
    made.train['images'][0]['file_name'] = 'turned.jpg'
    Image.new('RGB', (64, 48)).save(made.root / 'images/turned.jpg', exif=exif)


@error('an image in the middle', '3.png (5 bytes) is damaged or not an image')
def _(made):
    made.train['images'] += [dict(id=i, file_name=f'{i}.png', height=48, width=64) for i in (3, 4)]
    made.write()
    (made.root / 'images/3.png').write_text('hello')


@error('a prefix that is text', "data_prefix='images/'", "data_prefix=dict(img='images/')")
def _(made):
    made.sets[0].data_prefix = 'images/'


@error('a prefix by another name', "data_prefix={'img_path': 'images/'} of train_dataloader",
       "data_prefix=dict(img='')")
def _(made):
    made.sets[0].data_prefix = dict(img_path='images/')
    made.sets[0].data_prefix.pop('img', None)


@error('an image missing far behind', '1 of 110 images', 'images/146.png')
def _(made):
    made.train['images'] = [dict(id=i, file_name=f'{i}.png', height=48, width=64)
                            for i in range(1, 151)]
    made.missing.add('146.png')


@error('a link to nowhere', '1 of 2 images', 'images/2.png')
def _(made):
    (made.root / 'images/2.png').unlink()
    (made.root / 'images/2.png').symlink_to('nowhere.png')
    made.missing.add('2.png')


@error('an image missing in a folder', '1 of 2 images', 'images/cam 1/0001.png')
def _(made):
    made.train['images'][0]['file_name'] = 'cam 1/0001.png'
    made.missing.add('cam 1/0001.png')


@pytest.mark.parametrize(('make', 'splits', 'parts'), CASES)
def test_what_is_told(made, make, splits, parts):
    assert problems(made, splits) == []
    make(made)
    is_doubt, *parts = parts
    told = problems(made, splits)
    files = {name for problem in told for name in made.files if f'{name}.json' in problem}
    assert len(told) <= max(1, len(files))  # nothing that only follows from it
    assert isinstance(told[0], Doubt) == is_doubt, told[0]
    for part in parts:
        assert part in told[0]


def valid(name):
    """Something odd that is no mistake; the function makes it."""
    def add(make):
        VALID.append(pytest.param(make, id=name))
        return make
    return add


VALID = []


@valid('background images as a second part')
def _(made):
    made.files['background'] = content(objects=[])
    made.config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        made.dataset('train'),
        made.dataset('background', filter_cfg=dict(filter_empty_gt=False))])


@valid('an unlabelled part without the key')
def _(made):
    made.files['unlabelled'] = content()
    del made.files['unlabelled']['annotations']
    made.config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        made.dataset('train'), made.dataset('unlabelled')])


@valid('wrappers in wrappers')
def _(made):
    parts = dict(type='ConcatDataset', datasets=[made.dataset('train')] * 2)
    made.config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=parts)


@valid('a file of classes')
def _(made):
    made.root.mkdir()
    (made.root / 'classes.txt').write_text('\n'.join(CLASSES) + '\n')
    for dataset in made.sets:
        dataset.metainfo.classes = f'{made.root}/classes.txt'


@valid('classes in a list')
def _(made):
    for dataset in made.sets:
        dataset.metainfo.classes = list(CLASSES)


@valid("the first of COCO's classes, which are not named")
def _(made):
    made.config.model.bbox_head.num_classes = 1
    for split in SPLITS:
        made.files[split] = content(['person'])
        del made.config[f'{split}_dataloader'].dataset['metainfo']


@valid('unused categories, in between')
def _(made):
    for annotations in made.files.values():
        renamed(annotations, 'objects', 'cat', 'horse', 'dog', 'bird', 'cow')


@valid('ids of categories in no order')
def _(made):
    for annotations in made.files.values():
        for category, id_ in zip(annotations['categories'], (7, 0, 3), strict=True):
            category['id'] = id_
        for entry, id_ in zip(annotations['annotations'], (7, 0, 3), strict=True):
            entry['category_id'] = id_


def converted(convert, *, objects=True):
    """Ids of images, of categories and, if asked for, of objects, as another type."""
    def convert_all(made):
        for annotations in made.files.values():
            for entry in [*annotations['images'], *annotations['categories']]:
                entry['id'] = convert(entry['id'])
            for entry in annotations['annotations']:
                entry |= {key: convert(entry[key]) for key in ('image_id', 'category_id')}
                entry['id'] = convert(entry['id']) if objects else entry['id']
    return convert_all


valid('ids as floats')(converted(float))
valid('ids as numbers in text')(converted(str))
valid('ids as words')(converted('id {}'.format, objects=False))
valid('ids beyond 32 bits')(converted(lambda id_: id_ + 2**40))


@valid('boxes without area among others')
def _(made):
    made.train['annotations'] += [thing(11, bbox=[4, 4, 0, 16], area=0), thing(12, area=0),
                                  thing(13, bbox=[4, 4, 0.5, 0.5])]
    made.val['annotations'] += [thing(11, bbox=[4, 4, 0, 16], area=0)]


@valid('boxes that leave the image')
def _(made):
    for annotations in made.files.values():
        annotations['annotations'] += [thing(11, bbox=[-5, -5, 200, 200]),
                                       thing(12, bbox=[100, 4, 16, 16])]


RLE = dict(size=list(SIZE), counts=[100, 20, SIZE[0] * SIZE[1] - 120])


@valid('crowds among objects')
def _(made):
    for annotations in made.files.values():
        annotations['annotations'].append(thing(11, iscrowd=1, segmentation=RLE))


@valid('masks as run lengths')
def _(made):
    made.with_masks()
    for entry in all_objects(made):
        entry['segmentation'] = RLE


@valid('masks as compressed run lengths')
def _(made):
    made.with_masks()
    for entry in all_objects(made):
        entry['segmentation'] = dict(size=list(SIZE), counts=coco_mask.frPyObjects(
            RLE, *SIZE)['counts'].decode())


@valid('masks of several parts')
def _(made):
    made.with_masks()
    for entry in all_objects(made):
        entry['segmentation'] = SQUARE * 2


@valid('no mask where MMDetection leaves the object out')
def _(made):
    made.with_masks()
    made.train['annotations'] += [
        thing(11, segmentation=None, ignore=1), thing(12, segmentation=[], area=0),
        thing(13, segmentation=[[1, 2]])]


for name, value in (('no', None), ('empty', []), ('an empty', [[]])):
    @valid(f'{name} segmentation, and no masks asked for')
    def _(made, value=value):
        lists(made, 'segmentation', value)


@valid('no iscrowd in the training alone')
def _(made):
    for entry in made.train['annotations']:
        del entry['iscrowd']


@valid('iscrowd as a bool')
def _(made):
    lists(made, 'iscrowd', False)


@valid('an ignored object without anything')
def _(made):
    made.train['annotations'].append(dict(id=11, image_id=1, category_id=1, ignore=1))


@valid('objects of images that are not listed')
def _(made):
    made.train['annotations'].append(thing(11, image=99))


@valid('images that are left out are not there')
def _(made):
    made.sets[0].filter_cfg = dict(filter_empty_gt=True, min_size=32)
    made.sets[0].ann_file = 'all.json'
    made.files['all'] = content()
    made.files['all']['images'].append(dict(id=9, file_name='gone.png', height=48, width=64))
    made.missing.add('gone.png')


@valid('the last images alone')
def _(made):
    made.sets[0].indices = -1
    for entry in made.train['annotations']:
        entry['image_id'] = 2


@valid('an image listed twice')
def _(made):
    for annotations in made.files.values():
        annotations['images'].append(dict(annotations['images'][0]))


@valid('ids twice where nothing is read')
def _(made):
    made.train['categories'].append(dict(id=3, name='horse'))
    made.train['annotations'] += [thing(1, image=99), thing(2, image=99)]


@valid('a category less where the evaluator has its own file')
def _(made):
    made.files['whole'] = content()
    made.val['categories'].pop()
    made.val['annotations'].pop()
    made.config.val_evaluator.ann_file = f'{made.root}/whole.json'


@valid('a category less where the data set is evaluated')
def _(made):
    made.val['categories'].pop()
    made.val['annotations'].pop()
    del made.config.val_evaluator['ann_file']


@valid('an evaluator that sorts the categories of its file')
def _(made):
    made.files['reversed'] = content()
    made.files['reversed']['categories'].reverse()
    made.config.val_evaluator.update(ann_file=f'{made.root}/reversed.json', sort_categories=True)


@valid('metrics in an evaluator')
def _(made):
    made.config.val_evaluator = dict(type='Evaluator', metrics=[made.config.val_evaluator])


@valid('the path of a file as a path')
def _(made):
    made.config.val_evaluator['ann_file'] = made.root / 'val.json'


@valid('predictions that are saved, not counted')
def _(made):
    made.config.model.bbox_head.num_classes = 80
    made.train['categories'] += [dict(id=i, name=f'class {i}') for i in range(4, 81)]
    made.sets[0].metainfo.classes = (*CLASSES, *(f'class {i}' for i in range(4, 81)))
    made.config.val_evaluator = dict(
        type='DumpDetResults', out_file_path=f'{made.root}/found.pkl')


@valid('a folder of stuff that nothing loads')
def _(made):
    made.sets[0].data_prefix.seg = 'nowhere/'


@valid('other numbers that are not of heads')
def _(made):
    made.config.model.update(backbone=dict(num_classes=1000), reid=dict(head=dict(num_classes=380)))


@valid('a number as segmentation, and no masks asked for')
def _(made):
    lists(made, 'segmentation', 5)


@valid('images without objects alone to evaluate, but one')
def _(made):
    made.val['annotations'] = made.val['annotations'][:1]


@valid('more keys')
def _(made):
    for annotations in made.files.values():
        annotations.update(info={}, licenses=[], videos=[])
    lists(made, 'keypoints', [0, 0, 0])


@valid('one file for both')
def _(made):
    made.sets[1].ann_file = 'train.json'
    made.config.val_evaluator.ann_file = f'{made.root}/train.json'


@valid('no root, and paths')
def _(made):
    for dataset in made.sets:
        dataset.ann_file = f'{made.root}/{dataset.ann_file}'
        dataset.data_prefix.img = f'{made.root}/images'
        del dataset['data_root']


@valid('several evaluators')
def _(made):
    made.config.val_evaluator = [made.config.val_evaluator, dict(type='CocoMetric')]


@valid('an evaluator without a file')
def _(made):
    del made.config.val_evaluator['ann_file']
    made.sets[1].pipeline[0] = dict(type='LoadAnnotations', with_bbox=True)


@valid('predictions alone, of images whose objects nobody knows')
def _(made):
    made.val['annotations'] = []
    made.config.val_evaluator.update(format_only=True, outfile_prefix=f'{made.root}/found')


@valid('classes instead of names')
def _(made):
    for dataset in made.sets:
        dataset.type = CocoDataset
    made.config.val_evaluator.type = CocoMetric
    made.config.train_dataloader.dataset = dict(type=RepeatDataset, times=2, dataset=dict(
        type=ConcatDataset, datasets=[made.sets[0]]))


def named(*names):
    """Two images of other names."""
    def rename(made):
        for annotations in made.files.values():
            for image, name in zip(annotations['images'], names, strict=True):
                image['file_name'] = name
    return rename


valid('names with folders')(named('cam 1/0001.png', 'cam 1/night/0002.png'))
valid('the same name in two folders')(named('a/1.png', 'b/1.png'))
valid('names beyond ASCII')(named('größe 猫.png', 'ñ/é.jpg'))
valid('capital letters')(named('1.PNG', '2.JPEG'))
valid('other formats')(named('1.bmp', '2.tif'))
valid('names with dots and percent')(named('a.b.c.png', '100%20.png'))


def drawn(name, *mode, **save):
    """An image as Pillow writes it, of another mode."""
    def draw(made):
        made.train['images'][0]['file_name'] = name
        (made.root / 'images').mkdir(parents=True)
        image = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) % 256)
        if mode:
            image = image.convert('L').convert(*mode)
        image.save(made.root / 'images' / name, **save)
    return draw


valid('a grey image')(drawn('grey.jpg', 'L'))
valid('a CMYK image')(drawn('cmyk.jpg', 'CMYK'))
valid('an image of 16 bits')(drawn('16.png'))
valid('an image with a palette')(drawn('palette.png', 'P'))
valid('an image of one bit')(drawn('bit.png', '1'))
valid('an image with alpha')(drawn('alpha.png', 'RGBA'))
valid('a progressive image')(drawn('progressive.jpg', 'RGB', progressive=True))
valid('a WebP image')(drawn('image.webp', 'RGB'))


@valid('a turned image whose entry says how it is read')
def _(made):
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn('turned.jpg', 'RGB', exif=exif)(made)
    made.train['images'][0].update(height=64, width=48)


@valid('an image of one pixel')
def _(made):
    made.train['images'].append(dict(id=3, file_name='pixel.png', height=1, width=1))
    made.image('pixel.png', np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize('make', VALID)
def test_what_is_no_mistake(made, make):
    """MMDetection reads it, and evaluates predictions of every class on it."""
    make(made)
    assert problems(made) == []
    for split in SPLITS:
        dataset = DATASETS.build(with_images(made.config[f'{split}_dataloader'].dataset))
        samples = [dataset[index]['data_samples'] for index in range(len(dataset))]
        assert any('gt_instances' in sample for sample in samples)
    for evaluator in evaluators_of(made.config, 'val'):
        evaluate(METRICS.build(evaluator), dataset, samples, heads_of(made.config.model))


def with_images(dataset):
    """A data set's config whose pipeline loads the images, too."""
    if isinstance(dataset, dict):
        dataset = {key: with_images(value) for key, value in dataset.items()}
        if 'pipeline' in dataset:
            keys = ('img_id', 'ori_shape', 'instances')
            dataset['pipeline'] = [dict(type='LoadImageFromFile'), *dataset['pipeline'],
                                   dict(type='PackDetInputs', meta_keys=keys)]
    elif isinstance(dataset, list):
        dataset = [with_images(part) for part in dataset]
    return dataset


def evaluate(metric, dataset, samples, heads):
    """Predict an object of each class in each image."""
    metric.dataset_meta = dataset.metainfo
    count = min(heads.values())
    for sample in samples:
        predicted = dict(bboxes=torch.tensor([[4., 4., 20., 20.]] * count),
                         scores=torch.ones(count), labels=torch.arange(count))
        if 'model.roi_head.mask_head.num_classes' in heads:
            predicted['masks'] = torch.ones(count, *sample.ori_shape, dtype=torch.bool)
        metric.process({}, [sample.to_dict() | dict(pred_instances=predicted)])
    metric.evaluate(len(samples))


@pytest.mark.parametrize(('missing', 'told'), [
    ((), []), (('cam 1/night/0002.png', ), ['1 of 2 images'])], ids=['whole', 'one is missing'])
def test_as_benchmark(made, missing, told):
    """What reproduce.py asks, of images in folders."""
    made.missing.update(missing)
    named('cam 1/0001.png', 'cam 1/night/0002.png')(made)
    made.write()
    found = list(dict.fromkeys(coco_problems(made.config, SPLITS, as_benchmark=True)))
    assert len(found) == 2 * len(told)  # both files list them
    for problem, part in zip(found, told * 2, strict=True):
        assert part in problem


def test_a_check_that_fails_itself_stops_nobody(capsys):
    def checks():
        yield 'no data'
        yield Doubt('one image')
        raise IndexError('list index out of range')

    assert without_doubts(checks()) == ['no data']
    assert capsys.readouterr().err.splitlines() == [
        'warning: one image',
        'warning: a check failed and was skipped: list index out of range']


def test_all_is_told_at_once(made):
    made.config.model.bbox_head.num_classes = 80
    for dataset in made.sets:
        dataset.metainfo.classes = ('dog', 'cat', 'bird')
    lists(made, 'iscrowd', None)
    made.val['images'][0]['height'] = 40
    told = ['differ in size', 'would be called', 'num_classes=80', 'without iscrowd']
    found = problems(made)
    for part in told:
        assert any(part in problem for problem in found), part


def test_each_file_is_read_once(made, reads):
    made.config.test_dataloader, made.config.test_evaluator = (
        made.config.val_dataloader, made.config.val_evaluator)
    assert problems(made, (*SPLITS, 'test')) == []
    assert reads == {'train.json': 1, 'val.json': 1}


def test_a_changed_file_is_read_again(made, reads):
    made.write()
    path = made.root / 'val.json'
    assert len(read_annotations(path).images) == 2
    path.write_text(json.dumps(dict(made.val, images=[], more=1)))
    assert len(read_annotations(path).images) == 0
    assert reads[path.name] == 2
