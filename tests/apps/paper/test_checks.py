"""Every input that would fail a run after days is refused before it starts."""
import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from sa_mmdet.apps.paper import checks
from sa_mmdet.apps.paper.checks import differing_keys, find_problems, save_settings
from sa_mmdet.apps.paper.runs import Run, plan_runs, select_rows

VAL = 'annotations/instances_val2017.json'


def problems(settings, pattern='retinanet_sa-r50'):
    runs = plan_runs(select_rows([3, 4], [pattern]), 1, settings)
    return [f'{check}: {problem}' for check, found in find_problems(runs, settings)
            for problem in found]


def only(settings, *parts):
    """There is one problem, whose sentence has all these parts."""
    problem, = problems(settings)
    for part in parts:
        assert part in problem


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_nothing_is_wrong(settings):
    assert problems(settings, 'mask-rcnn_s?-r50') == []
    assert not settings.work_dir.exists()


def test_annotations_without_images(settings):
    edit(settings.data_root / VAL, lambda content: content['images'][0].update(file_name='x.jpg'))
    only(settings, '1 of 3 images', 'x.jpg')


def test_val_set_with_renumbered_images(settings):
    def renumber(content):
        content['annotations'] = [a for a in content['annotations']
                                  if a['image_id'] != content['images'][0]['id']]
        content['images'][0]['id'] = 7
    edit(settings.data_root / VAL, renumber)
    only(settings, 'other image ids than COCO', 'has the id 7')


def test_evaluator_of_another_val_set(settings, coco_tiny):
    whole = coco_tiny / VAL
    settings = dataclasses.replace(settings, cfg_options=settings.cfg_options | {
        'test_evaluator.ann_file': str(whole)})
    only(settings, 'test_evaluator.ann_file', '0 of 3 tested images are not in it',
         '77 of its 80 are not tested')


def test_part_of_a_val_set(settings):
    settings = dataclasses.replace(settings, cfg_options=settings.cfg_options | {
        'test_dataloader.dataset.indices': 2})
    only(settings, 'test_dataloader.dataset.indices=2')


@pytest.mark.parametrize(('change', 'message'), [
    (lambda content: content['categories'].pop(), "lacks 1 categories of the data set (t"),
    (lambda content: content['images'].pop(), 'objects whose image it does not list'),
], ids=['a category less', 'an image less'])
def test_damaged_annotations(settings, change, message):
    edit(settings.data_root / VAL, change)
    assert any(message in problem for problem in problems(settings))


def test_slurm_without_srun(settings, monkeypatch):
    monkeypatch.setattr(checks.shutil, 'which', lambda name: None)
    only(dataclasses.replace(settings, slurm='gpu', gpus=8), '--slurm needs srun')


def test_config_option_that_does_not_build(settings):
    settings = dataclasses.replace(settings, cfg_options={
        'model.backbone.attention': dict(groups=48), 'model.backbone.init_cfg': None})
    assert any('cannot be built' in p and 'groups=48' in p for p in problems(settings))


def test_other_settings_are_not_mixed(settings):
    save_settings(settings)
    assert problems(settings) == []
    only(dataclasses.replace(settings, cfg_options=settings.cfg_options | {'a': 1}),
         'has runs with other settings', '--cfg-options was', '"a": 1', 'another --work-dir')
    (settings.work_dir / checks.SETTINGS_FILE).write_text('{')
    only(settings, 'settings.json is damaged')


def test_a_run_begun_with_another_config(settings):
    run = Run(select_rows([3], ['retinanet_sa-r50'])[0], 0, settings)
    run.config_file.parent.mkdir(parents=True)
    text = run.config.pretty_text
    run.config_file.write_text(text)
    assert problems(settings) == []
    run.config_file.write_text(text.replace('max_epochs=12', 'max_epochs=11'))
    only(settings, 'was started with another config', 'train_cfg.max_epochs changed')


@pytest.mark.parametrize('options', [
    {'load_from': 'gone.pth'},
    {'model.backbone.init_cfg': [dict(type='Pretrained', checkpoint='gone.pth')]},
], ids=['detector', 'list'])
def test_weights_to_start_from_that_are_not_there(settings, options):
    only(dataclasses.replace(settings, cfg_options=settings.cfg_options | options),
         'gone.pth does not exist')


def test_work_dir_that_is_a_file(settings):
    settings.work_dir.touch()
    assert any('is not a folder' in problem for problem in problems(settings))


def test_full_disk(settings, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=10**9 // 2))
    only(settings, 'has 0.5 GB free, and the runs may need 1.0 GB')


def test_checkpoint_to_test(settings, tmp_path):
    run = Run(select_rows([3], ['retinanet_sa-r50'])[0], 0, settings)
    init_default_scope('mmdet')
    path = tmp_path / 'detector.pth'
    torch.save(dict(state_dict=MODELS.build(run.config.model).state_dict()), path)
    name = 'retinanet_sa-r50'
    assert problems(dataclasses.replace(settings, checkpoints={name: path})) == []
    gone = {name: tmp_path / 'gone'}
    only(dataclasses.replace(settings, checkpoints=gone), 'gone does not exist')

    tested = dataclasses.replace(settings, checkpoints={name: path})
    run = Run(run.row, 0, tested)
    run.folder.mkdir(parents=True)
    run.result_file.write_text(json.dumps(dict(checkpoint='other.pth', checkpoint_sha256='0')))
    only(tested, 'has the result of other.pth, which is not')


def test_differing_keys():
    assert list(differing_keys(dict(a=1, b=dict(c=2)), dict(a=1, b=dict(c=3), d=4))) == ['b.c', 'd']
