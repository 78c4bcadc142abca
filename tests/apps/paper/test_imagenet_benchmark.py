"""Figures of classifiers are computed again from what was predicted for every image."""
import json

import pytest
from mmengine.config import Config

from image_folder import CLASSES, generate_images
from sa_mmdet.apps.paper.runs import BENCHMARKS, benchmark_of
from sa_mmdet.apps.paper.tables import load_table
from sa_mmdet.checkpoint.files import sha256

IMAGENET = BENCHMARKS['ImageNet']
IMAGES = 4 * CLASSES


@pytest.fixture
def config(tmp_path):
    root = generate_images(tmp_path / 'imagenet', train=0, val=4)
    return Config(dict(test_dataloader=dict(dataset=dict(
        type='ImageNet', data_root=str(root), split='val',
        metainfo=dict(classes=list(map(str, range(CLASSES))))))))


@pytest.fixture
def finished(tmp_path, config):
    """A run's folder and result: 12 of 24 images have their class first, 4 have it fifth."""
    entries = []
    for number in range(IMAGES):
        label = number // 4
        others = [c for c in range(CLASSES) if c != label]
        place = {0: 0, 1: 0}.get(number % 4, 4 if number < 8 else None)
        classes = others[:5] if place is None else [*others[:place], label, *others[place:4]]
        entries.append(dict(image=f'n{label:08d}/val_{number % 4}.JPEG', label=label,
                            classes=classes))
    path = IMAGENET.prediction_file(tmp_path, 'accuracy')
    path.write_text(json.dumps(entries))
    evaluated_on = IMAGENET.describe(config)
    result = dict(
        row='sa-resnet50', seed=0, evaluated_on=evaluated_on,
        metrics=dict(accuracy=IMAGENET.evaluate(evaluated_on, path, 'accuracy')),
        logged={'accuracy/top1': 50.0, 'accuracy/top5': 66.66667175292969},
        predictions=dict(accuracy=dict(file=path.name, sha256=sha256(path))))
    return tmp_path, result


def test_accuracy(finished):
    folder, result = finished
    assert result['metrics']['accuracy'] == dict(top1=0.5, top5=16 / 24)
    assert IMAGENET.check_result(result, folder) == []
    assert benchmark_of(result) is BENCHMARKS[load_table(2)[0].dataset] is IMAGENET
    assert benchmark_of(result | dict(dataset='COCO')) is BENCHMARKS['COCO']


@pytest.mark.parametrize(('edit', 'message'), [
    (lambda entries: entries[0]['classes'].reverse(), 'accuracy top1 is 0.458333, but 0.5'),
    (lambda entries: entries.pop(), '1 of them missing, unknown or of another class'),
    (lambda entries: entries.append(entries[0]), 'such as an image that appears twice'),
    (lambda entries: entries[0].update(label=1), 'of another class, such as n00000000/val_0.JPEG'),
    (lambda entries: entries.clear(), '24 of them missing'),
], ids=['classes', 'removed', 'twice', 'label', 'empty'])
def test_one_changed_prediction_is_found(finished, edit, message):
    folder, result = finished
    path = folder / 'predictions.json'
    entries = json.loads(path.read_text())
    edit(entries)
    path.write_text(json.dumps(entries))
    problems = IMAGENET.check_result(result, folder)
    assert 'was changed after it was evaluated' in problems[0]
    assert any(message in problem for problem in problems)


@pytest.mark.parametrize(('name', 'value', 'found'), [
    ('accuracy/top1', 50.002, True), ('accuracy/top5', 66.6667, False)])
def test_another_logged_accuracy_is_found(finished, name, value, found):
    """To half of one image in 50,000."""
    folder, result = finished
    result['logged'][name] = value
    assert bool(IMAGENET.check_result(result, folder)) == found


def test_changed_images_are_found(finished):
    folder, result = finished
    (folder / 'imagenet/val/n00000000/val_0.JPEG').rename(
        folder / 'imagenet/val/n00000001/val_9.JPEG')
    problem, = IMAGENET.check_result(result, folder)
    assert 'imagenet/val have changed since the evaluation' in problem
    (folder / 'imagenet').rename(folder / 'moved')
    problem, = IMAGENET.check_result(result, folder)
    assert 'imagenet/val no longer exists' in problem


@pytest.mark.parametrize(('key', 'value', 'message'), [
    ('test_dataloader.dataset.type', 'CIFAR10', "must be MMPretrain's ImageNet, on this machine"),
    ('test_dataloader.dataset.indices', 10, 'indices=10 would count the other images as missed'),
    ('test_evaluator.topk', 1, 'must be MMPretrain\'s Accuracy with topk=(1, 5) and'),
    ('test_evaluator.thrs', 0.5, 'topk=(1, 5) and no thrs, got'),
    ('test_dataloader.dataset.split', 'test', "split='test' has no labels"),
    ('test_evaluator.type', 'SingleLabelMetric', "got {'type': 'SingleLabelMetric'"),
], ids=str)
def test_what_could_not_be_evaluated_at_the_end(config, tmp_path, key, value, message):
    config.test_evaluator = dict(type='Accuracy', topk=(1, 5))
    config.merge_from_dict({key: value})
    IMAGENET.save_predictions(config, tmp_path)
    problem, = IMAGENET.data_problems(config, ('test', ))
    assert message in problem


def test_labels_in_a_file(config, tmp_path, finished):
    """They are the same images and labels, also when read from result.json."""
    root = tmp_path / 'imagenet'
    lines = [f'n{number // 4:08d}/val_{number % 4}.JPEG {number // 4}' for number in range(IMAGES)]
    (root / 'labels.txt').write_text('\n'.join(f'./{line}' for line in lines))
    config.test_dataloader.dataset.ann_file = 'labels.txt'
    folder, result = finished
    described = json.loads(json.dumps(IMAGENET.describe(config)))
    assert described['sha256'] == result['evaluated_on']['sha256']
    assert described['dataset']['ann_file'] == 'labels.txt'
    result['evaluated_on'] = described
    assert IMAGENET.check_result(result, folder) == []
    (root / 'labels.txt').write_text('\n'.join(['no label', *lines]))
    problem, = IMAGENET.check_result(result, folder)
    assert "labels.txt, line 1: expected the path of an image" in problem
    assert problem.endswith("found 'no label'")


def test_only_what_is_read_has_to_be_there(config):
    """A classifier is tested without the images that it was trained on."""
    config.train_dataloader = dict(dataset=config.test_dataloader.dataset | dict(split='train'))
    config.test_evaluator = [dict(type='Accuracy', topk=(1, 5))]
    config.model = dict(head=dict(num_classes=CLASSES))
    assert list(IMAGENET.data_problems(config, ('test', ))) == []
    assert len(list(IMAGENET.data_problems(config, ('train', 'test')))) == 1


def test_what_the_paper_evaluates_on(config, monkeypatch):
    described = IMAGENET.describe(config)
    assert described['label'] == '24 images of 6 classes in imagenet, NOT ImageNet val'
    assert not described['is_papers']
    module = 'sa_mmdet.apps.paper.benchmarks.imagenet'
    monkeypatch.setattr(f'{module}.class_count', lambda dataset: 1000)
    assert not IMAGENET.describe(config)['is_papers']
    for name, is_papers in (('held_out', False), ('ILSVRC2012_val', True)):
        images = [(f'n{i % 1000}/{name}_{i + 1:08d}.JPEG', i % 1000) for i in range(50_000)]
        monkeypatch.setattr(f'{module}.labelled_images', lambda dataset, images=images: images)
        assert IMAGENET.describe(config)['is_papers'] == is_papers
    described = IMAGENET.describe(config)
    assert described['is_papers']
    assert described['label'] == 'ImageNet val (50,000 images)'
