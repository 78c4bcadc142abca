import dataclasses
import os
from datetime import datetime

import pytest
import torch

from sa_mmdet.apps.paper.execute import test_command as command_of_test
from sa_mmdet.apps.paper.execute import train_command, training_hours
from sa_mmdet.apps.paper.runs import ReproduceError, Run, plan_runs, select_rows


def row(name):
    return select_rows([3, 4], [name])[0]


@pytest.mark.parametrize(('tables', 'rows'), [
    ([1], 5), ([2], 12), ([1, 2], 16), ([3], 18), ([4], 10), ([3, 4], 22)], ids=str)
def test_a_row_of_two_tables_is_one(tables, rows):
    names = [row.name for row in select_rows(tables, [])]
    assert len(names) == len(set(names)) == rows


def test_rows_by_pattern():
    assert [row.name for row in select_rows([3], ['*_sa-r50'])] == [
        'faster-rcnn_sa-r50', 'mask-rcnn_sa-r50', 'retinanet_sa-r50']


@pytest.mark.parametrize(('tables', 'name', 'message'), [
    ([1, 3], '*', '--table 1 3: Tables 1 and 2 use ImageNet, 3 and 4 use COCO'),
    ([1, 2], 'sa-r50', 'did you mean sa-resnet50?'),
    ([1], 'se-resnet101', 'is a row of Table 2: add --table 2'),
    ([1, 2], 'retinanet_sa-r50', 'is a row of Table 3: pass --table 3'),
    ([2], '???!', 'choose from sa-resnet50, sa-resnet50_no-gn'),
    ([3, 4], 'sa-resnet50*', 'sa-resnet50 is a row of Table 2: pass --table 2'),
    ([3], 'mask-rcnn-sa-r50', 'did you mean mask-rcnn_sa-r50?'),
    ([3], 'retinanet_sa_r110', 'did you mean retinanet_sa-r10'),
    ([3], 'mask-rcnn_eca-r50', 'is a row of Table 4: add --table 4'),
    ([3], '???!', 'choose from faster-rcnn_r50'),
], ids=str)
def test_unknown_rows(tables, name, message):
    with pytest.raises(ReproduceError) as error:
        select_rows(tables, [name])
    assert message in str(error.value)


def test_plan_runs_every_seed_of_every_row(settings):
    runs = plan_runs(select_rows([3], ['retinanet_r*']), 2, settings)
    assert [run.name for run in runs] == [
        'retinanet_r50 seed 0', 'retinanet_r101 seed 0', 'retinanet_r50 seed 1',
        'retinanet_r101 seed 1']


def test_config_of_a_run(settings):
    config = Run(row('mask-rcnn_sa-r101'), 3, settings).config
    assert config.model.backbone.depth == 101
    assert config.model.backbone.init_cfg is None
    assert config.randomness.seed == 3
    assert config.train_cfg.max_epochs == 12
    assert config.optim_wrapper.optimizer.lr == 0.02
    assert config.auto_scale_lr == dict(enable=True, base_batch_size=16)
    for split in ('train', 'val', 'test'):
        assert config[f'{split}_dataloader'].dataset.data_root == f'{settings.data_root}/'
    annotations = str(settings.data_root / 'annotations/instances_val2017.json')
    assert config.val_evaluator.ann_file == config.test_evaluator.ann_file == annotations
    assert 'outfile_prefix' not in config.val_evaluator
    assert config.test_evaluator.outfile_prefix.endswith('work/mask-rcnn_sa-r101/seed3/detections')


def test_initial_weights_by_depth_and_attention(settings):
    start = dict(type='Pretrained', checkpoint='se.pth')
    settings = dataclasses.replace(settings, init='imagenet', cfg_options={},
                                   starts={(50, 'SE'): dict(init_cfg=start)})
    assert Run(row('retinanet_se-r50'), 0, settings).config.model.backbone.init_cfg == start


@pytest.mark.parametrize(('gpus', 'slurm', 'expected'), [
    (0, None, ['tools/train.py']),
    (1, None, ['tools/train.py']),
    (4, None, ['-m torch.distributed.run --standalone --nproc_per_node=4', '--launcher pytorch']),
    (8, 'gpu', ['tools/slurm_train.sh gpu retinanet_r50']),
], ids=str)
def test_commands(settings, gpus, slurm, expected):
    run = Run(row('retinanet_r50'), 0, dataclasses.replace(settings, gpus=gpus, slurm=slurm))
    train = ' '.join(train_command(run))
    assert all(part in train for part in [*expected, '--resume', str(run.config_file)])
    test = ' '.join(command_of_test(run, run.folder / 'epoch_12.pth'))
    assert all(part.replace('train', 'test') in test for part in [*expected, 'epoch_12.pth'])
    assert ('--launcher' in train) == (gpus > 1 and not slurm)


def test_last_whole_checkpoint(settings):
    run = Run(row('retinanet_r50'), 0, settings)
    assert run.last_checkpoint() == (0, None)
    assert run.state() == 'not started'
    run.folder.mkdir(parents=True)
    for epoch in (2, 9, 10):
        torch.save(dict(state_dict=dict(a=torch.ones(9999))), run.folder / f'epoch_{epoch}.pth')
    assert run.last_checkpoint()[0] == 10
    content = (run.folder / 'epoch_10.pth').read_bytes()
    (run.folder / 'epoch_10.pth').write_bytes(content[:-9])
    (run.folder / 'epoch_11.pth').touch()
    assert run.last_checkpoint() == (9, run.folder / 'epoch_9.pth')
    assert run.state() == 'epoch 9 of 12 done'
    (run.folder / 'epoch_12.pth').write_bytes(content)
    assert run.state() == 'trained, to be tested'
    run.result_file.touch()
    assert run.state() == 'finished'


def test_hours_of_all_attempts(tmp_path):
    for name, seconds in (('20260101_000000', 3600), ('20260102_000000', 1800)):
        log = tmp_path / name / f'{name}.log'
        log.parent.mkdir()
        log.touch()
        end = datetime.strptime(name, '%Y%m%d_%H%M%S').timestamp() + seconds
        os.utime(log, (end, end))
    assert training_hours(tmp_path) == pytest.approx(1.5)
