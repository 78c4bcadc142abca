"""What is wrong with a folder is said in a sentence, before MMPretrain reads it."""
import json
import shutil
import subprocess
import sys

import pytest
from mmengine.config import Config, ConfigDict

from image_folder import CLASSES, generate_images
from sa_mmdet.apps.validate.imagenet import class_count, imagenet_problems, labelled_images

SPLITS = ('train', 'val')


@pytest.fixture
def root(tmp_path):
    return generate_images(tmp_path / 'imagenet')


def config(root, classes=CLASSES, outputs=None, **options):
    named = dict(metainfo=dict(classes=list(map(str, range(classes))))) if classes else {}
    loaders = {f'{split}_dataloader': dict(dataset=dict(
        type='ImageNet', data_root=str(root), split=split, **named, **options))
        for split in SPLITS}
    return Config(dict(
        loaders, model=dict(head=dict(num_classes=outputs or classes or 1000))))


def problems(*args, **options):
    return list(imagenet_problems(config(*args, **options), SPLITS))


def only(found, *parts):
    problem, = found
    for part in parts:
        assert part in problem


def write_labels(root, labels):
    (root / 'meta').mkdir()
    (root / 'meta/val.txt').write_text(''.join(
        f'n{str(label).zfill(8)}/val_0.JPEG {label}\n' for label in labels))


def test_nothing_is_wrong(root):
    assert problems(root) == []
    (root / 'train/n00000000/._0.JPEG').write_text('of a file manager')
    (root / 'train/n00000000/notes.txt').touch()
    assert problems(root) == []


def test_hidden_folder(root):
    """MMPretrain counts it as a class."""
    (root / 'train/.cache').mkdir()
    only(problems(root), 'train has 7 class folders, expected 6: remove .cache')


def test_folder_is_missing(tmp_path, root):
    found = problems(tmp_path / 'nowhere')
    assert len(found) == 2
    assert f'{tmp_path}/nowhere/train does not exist: expected the images' in found[0]
    shutil.rmtree(root / 'val')
    (root / 'val').touch()
    only(problems(root), 'val is not a folder')


def test_wrong_number_of_classes(root):
    found = problems(root, classes=None)
    assert len(found) == 2
    assert 'train has 6 class folders, expected 1000' in found[0]
    assert 'metainfo.classes' in found[0]
    shutil.rmtree(root / 'val/n00000003')
    only(problems(root), 'val has 5 class folders, expected 6')


def test_head_has_another_number(root):
    only(problems(root, outputs=1000), 'num_classes=1000, but the data sets have 6 classes',
         '--cfg-options model.head.num_classes=6')


def test_validation_images_as_they_are_downloaded(root):
    for path in list((root / 'val').iterdir()):
        (path / 'val_0.JPEG').rename(root / f'val/ILSVRC_{path.name}.JPEG')
        path.rmdir()
    only(problems(root), 'val has 0 class folders and 6 images outside them, expected 6',
         'sort the images into one folder per class', 'meta/val.txt')


def test_folders_are_called_differently(root):
    (root / 'val/n00000003').rename(root / 'val/n00000009')
    only(problems(root), 'different class folders, such as n00000003')


def test_class_without_images(root):
    (root / 'val/n00000003/val_0.JPEG').rename(root / 'val/n00000003/val_0.txt')
    only(problems(root), 'val has no images of 1 of its 6 classes, such as n00000003')


def test_damaged_image(root):
    (root / 'val/n00000000/val_0.JPEG').write_text('<html>')
    only(problems(root), 'val_0.JPEG (6 bytes) is damaged or not an image')


def test_labels_in_a_file(root):
    write_labels(root, range(CLASSES))
    assert problems(root) == []
    lines = (root / 'meta/val.txt').read_text().splitlines()
    (root / 'meta/val.txt').write_text('\n'.join([*lines[:-2], 'gone.JPEG 4', 'no/where.JPEG 5']))
    only(problems(root), 'meta/val.txt lists 2 images that do not exist, such as ',
         'val/gone.JPEG. Fix their paths', 'remove ')
    (root / 'meta/val.txt').write_text('\n'.join([*lines, f'./{lines[0]}']))
    only(problems(root), 'lists 1 images more than once, such as n00000000/val_0.JPEG')


def test_fewer_classes_than_the_metric_asks_for(tmp_path):
    cfg = config(generate_images(tmp_path, classes=3), classes=3)
    cfg.val_evaluator = dict(type='Accuracy', topk=(1, 5))
    only(imagenet_problems(cfg, SPLITS), 'val_evaluator.topk=(1, 5) asks for the top 5 of 3',
         '--cfg-options val_evaluator.topk=1')
    cfg.val_evaluator.topk = 1
    assert list(imagenet_problems(cfg, SPLITS)) == []


def test_as_mmpretrain_lists_them(root, environment_of_mmpretrain):
    """The same images with the same labels, whatever lies in the folders."""
    (root / 'val/n00000001/deeper').mkdir()
    (root / 'val/n00000001/val_0.JPEG').rename(root / 'val/n00000001/deeper/x.PNG')
    (root / 'elsewhere').mkdir()
    (root / 'val/n00000002/val_0.JPEG').rename(root / 'elsewhere/y.jpeg')
    (root / 'val/n00000002/link').symlink_to(root / 'elsewhere')
    (root / 'val/n00000003/._val_0.JPEG').touch()
    (root / 'val/n00000003/gone.JPEG').symlink_to(root / 'nowhere')
    dataset = config(root).val_dataloader.dataset
    code = ('import json, sys; import sa_mmdet; from mmpretrain.datasets import ImageNet\n'
            'data = ImageNet(sys.argv[1], split="val", metainfo=dict(classes=list("abcdef")))\n'
            'found = [data.get_data_info(i) for i in range(len(data))]\n'
            'print(json.dumps([(info["img_path"], info["gt_label"]) for info in found]))')
    printed = subprocess.run([sys.executable, '-c', code, str(root)], check=True, text=True,
                             stdout=subprocess.PIPE, env=environment_of_mmpretrain).stdout
    theirs = json.loads(printed.splitlines()[-1])
    ours = [[f'{root}/val/{image}', label] for image, label in labelled_images(dataset)]
    assert sorted(ours) == sorted(theirs)
    assert len(ours) == CLASSES


@pytest.mark.parametrize(('labels', 'message'), [
    (range(1, 7), 'has classes from 1 to 6, but the config expects 0 to 5. A class is the'),
    (range(5), 'has images of 5 classes, expected 6'),
    ((), 'lists no image'),
    (['x'], "line 1: expected the path of an image and the number of its class, found '"
     "n0000000x/val_0.JPEG x'"),
], ids=['from 1', 'few', 'none', 'no number'])
def test_wrong_labels(root, labels, message):
    write_labels(root, labels)
    only(problems(root), message)


@pytest.mark.parametrize('change', [
    dict(type='CIFAR10'), dict(data_root='s3://imagenet')], ids=str)
def test_other_data_sets_are_left_alone(change):
    cfg = config('nowhere')
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.update(change)
    assert list(imagenet_problems(cfg, SPLITS)) == []


def test_wrapped_and_missing_data_sets(tmp_path):
    cfg = config(tmp_path / 'nowhere')
    cfg.val_dataloader = None
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    only(imagenet_problems(cfg, SPLITS), 'nowhere/train does not exist')


def test_images_and_their_labels(root):
    dataset = config(root).val_dataloader.dataset
    images = labelled_images(dataset)
    assert images == [(f'n{label:08d}/val_0.JPEG', label) for label in range(CLASSES)]
    write_labels(root, labels=(3, 1))
    assert labelled_images(dataset) == [('n00000003/val_0.JPEG', 3), ('n00000001/val_0.JPEG', 1)]


def test_number_of_classes(tmp_path):
    assert class_count(ConfigDict(type='ImageNet')) == 1000
    assert class_count(ConfigDict(metainfo=dict(classes=('a', 'b')))) == 2
    (tmp_path / 'classes.txt').write_text('a\nb\nc\n')
    assert class_count(ConfigDict(classes=str(tmp_path / 'classes.txt'))) == 3
