"""Same data and same start for all rows of a seed, and what the others continue."""
import dataclasses

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from coco import CONFIGS
from sa_mmdet.apps.datasets.textured import CLASSES
from sa_mmdet.apps.paper.runs import ReproduceError, RunFailed, Settings, plan_runs
from sa_mmdet.apps.study.runs import FROM_SCRATCH, PLAIN, ROWS, StudyRun, study_rows
from sa_mmdet.checkpoint import read_checkpoint


@pytest.fixture
def settings(tmp_path):
    return Settings(root=CONFIGS.parent, work_dir=tmp_path / 'work', data_root=tmp_path / 'data')


def run(name, settings, seed=0):
    return StudyRun(ROWS[name], seed, settings)


def build(config):
    init_default_scope('mmdet')
    return MODELS.build(config.model)


def loaded(study_run):
    """The model of a run as it is when its training begins."""
    model = build(study_run.config)
    model.init_weights()
    return model.eval()


def features(model):
    with torch.no_grad():
        return model.extract_feat(torch.randn(1, 3, 64, 64, generator=torch.manual_seed(0)))


def test_rows_and_their_order(settings):
    names = [each.name for each in plan_runs(study_rows([]), 2, settings, StudyRun)]
    assert len(names) == 18
    assert names[:9] == [f'{name} seed 0' for name in (
        'mask-rcnn_r50', 'mask-rcnn_se-r50', 'mask-rcnn_eca-r50', 'mask-rcnn_sge-r50',
        'mask-rcnn_cbam-r50', 'mask-rcnn_sa-r50', 'mask-rcnn_r50_continued',
        'mask-rcnn_sa-r50_converted', 'mask-rcnn_sa-r50_unconverted')]


@pytest.mark.parametrize(('patterns', 'rows'), [
    (['mask-rcnn_sa-r50'], ['mask-rcnn_sa-r50']),
    (['*_converted'], ['mask-rcnn_r50', 'mask-rcnn_sa-r50_converted']),
    (['*_continued', 'mask-rcnn_r50'], ['mask-rcnn_r50', 'mask-rcnn_r50_continued']),
], ids=str)
def test_what_is_continued_comes_first(patterns, rows):
    assert [row.name for row in study_rows(patterns)] == rows


def test_unknown_row():
    message = r"_convert' is not a row of the study: did you mean .*_converted"
    with pytest.raises(ReproduceError, match=message):
        study_rows(['mask-rcnn_sa-r50_convert'])


@pytest.mark.parametrize('row', FROM_SCRATCH, ids=lambda row: row.label)
def test_config(row):
    config = Config.fromfile(CONFIGS / row.config)
    for split in ('train', 'val', 'test'):
        assert config[f'{split}_dataloader'].dataset.metainfo.classes == CLASSES
    head = config.model.roi_head
    assert head.bbox_head.num_classes == head.mask_head.num_classes == len(CLASSES)
    block = build(config).backbone.layer1[0]
    assert hasattr(block, row.attention.lower()) == (row is not PLAIN)


def test_all_rows_of_a_seed_start_from_the_same_weights(settings):
    states = {}
    for row in FROM_SCRATCH:
        name, study_run = row.name, StudyRun(row, 0, settings)
        study_run.make_start()
        states[name] = loaded(study_run).state_dict()
    plain = states.pop('mask-rcnn_r50')
    for state in states.values():
        assert all(torch.equal(state[key], value) for key, value in plain.items())
    own = [value for key, value in states['mask-rcnn_se-r50'].items() if '.se.' in key]
    assert all(value.std() > 0.01 for value in own)
    other = run('mask-rcnn_r50', settings, seed=1)
    other.make_start()
    assert not torch.equal(loaded(other).state_dict()['backbone.conv1.weight'],
                           plain['backbone.conv1.weight'])


def test_a_start_is_drawn_once_and_alike(settings):
    study_run = run('mask-rcnn_cbam-r50', settings)
    study_run.make_start()
    weights = read_checkpoint(study_run.start_file)['state_dict']
    before = study_run.start_file.stat().st_mtime_ns
    study_run.make_start()
    assert study_run.start_file.stat().st_mtime_ns == before
    study_run.start_file.write_bytes(b'damaged')
    torch.rand(7)
    study_run.make_start()
    again = read_checkpoint(study_run.start_file)['state_dict']
    assert all(torch.equal(again[key], value) for key, value in weights.items())


def test_only_converted_weights_compute_what_the_plain_network_did(settings):
    plain = run('mask-rcnn_r50', settings)
    model = build(plain.config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1)
    last = plain.folder / f'epoch_{plain.epochs}.pth'
    last.parent.mkdir(parents=True)
    torch.save(dict(state_dict=model.state_dict()), last)
    expected = features(model.eval())
    for name, same in (('mask-rcnn_r50_continued', True), ('mask-rcnn_sa-r50_converted', True),
                       ('mask-rcnn_sa-r50_unconverted', False)):
        study_run = run(name, settings)
        study_run.make_start()
        found = features(loaded(study_run))
        close = [torch.allclose(a, b, rtol=1e-3, atol=1e-4 * b.abs().max())
                 for a, b in zip(found, expected, strict=True)]
        assert all(close) if same else not any(close), name


def test_what_is_not_trained_cannot_be_continued(settings):
    study_run = run('mask-rcnn_sa-r50_converted', settings)
    with pytest.raises(RunFailed, match=r'continues mask-rcnn_r50 seed 0, whose .* missing .* fix'):
        study_run.make_start()
    study_run.plain.folder.mkdir(parents=True)
    study_run.plain.result_file.touch()
    with pytest.raises(RunFailed, match=r'remove .*mask-rcnn_r50/seed0/result.json and the fol'):
        study_run.make_start()


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=dict(weight=torch.tensor(value)), meta={}), path)


def test_what_was_begun_does_not_go_on_from_another_network(settings):
    study_run = run('mask-rcnn_sa-r50_converted', settings)
    save(study_run.start_file, 1.)
    study_run.make_start()
    begun = study_run.start_sha256
    save(study_run.folder / 'epoch_1.pth', 1.)
    study_run.make_start()
    save(study_run.start_file, 2.)
    with pytest.raises(RunFailed, match=rf'epoch_2.pth has changed .*: remove {study_run.folder}'):
        study_run.make_start()
    assert study_run.start_sha256 == begun
    (study_run.folder / 'epoch_1.pth').unlink()
    study_run.make_start()
    assert study_run.start_sha256 not in (None, begun)


def test_what_was_begun_is_known_without_its_start(settings):
    """Also of random weights, which may be removed for space and are drawn again alike."""
    study_run = run('mask-rcnn_r50', settings)
    study_run.make_start()
    save(study_run.folder / 'epoch_1.pth', 1.)
    begun = study_run.start_sha256
    study_run.start_file.unlink()
    study_run.make_start()
    assert study_run.start_file.is_file()
    assert study_run.start_sha256 == begun


def test_validation_of_what_is_continued(settings):
    """Before the first epoch and after each; from scratch none, which the test at the end is."""
    scratch, continued = (run(name, settings).config for name in (
        'mask-rcnn_sa-r50', 'mask-rcnn_sa-r50_converted'))
    assert scratch.train_cfg.val_begin > scratch.train_cfg.max_epochs
    assert continued.train_cfg.val_begin == 1
    assert [hook.type for hook in continued.custom_hooks] == [
        'mmdet.InitialValidationHook', 'mmdet.EpochSeedHook']


def test_options_reach_what_is_continued(settings):
    settings = dataclasses.replace(settings, cfg_options={'train_cfg.max_epochs': 7})
    start = run('mask-rcnn_r50_continued', settings).config.model.init_cfg
    assert start.checkpoint == str(settings.work_dir / 'mask-rcnn_r50/seed0/epoch_7.pth')
