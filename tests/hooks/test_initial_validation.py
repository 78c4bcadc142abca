"""The hook in the tiny training of MMEngine's runner."""
import json

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import sa_mmdet  # noqa: F401


class Weight(BaseModel):

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs, mode):
        assert self.training == (mode == 'loss')
        return dict(loss=self.weight.square()) if mode == 'loss' else [self.weight.item()]


class Value(BaseMetric):
    """What the weight is."""

    def process(self, data_batch, data_samples):
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        return dict(value=results[0])


def train(folder, epochs, resume=False, **loaders):
    loader = dict(dataset=[dict(inputs=torch.ones(1))] * 2, batch_size=1,
                  sampler=dict(type='DefaultSampler', shuffle=False))
    validation = dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=Evaluator(Value()))
    Runner(
        Weight(), str(folder), train_dataloader=loader, **(validation | loaders),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), resume=resume,
        default_hooks=dict(
            checkpoint=dict(type='AtomicCheckpointHook', save_best='value', rule='less')),
        custom_hooks=[dict(type='InitialValidationHook')], default_scope='mmdet',
        experiment_name=f'{folder.name} {epochs} {resume}', log_level='WARNING').train()
    lines = [json.loads(line) for path in sorted(folder.glob('*/vis_data/scalars.json'))
             for line in path.read_text().splitlines()]
    return {line['step']: line['value'] for line in lines if 'value' in line}


def test_epoch_0_is_what_the_initial_weights_are_worth(tmp_path):
    values = train(tmp_path, epochs=2)
    assert list(values) == [0, 1, 2]
    assert values[0] == 1
    assert 1 > values[1] > values[2]


def test_a_validation_that_was_interrupted_is_made_up_for(tmp_path, monkeypatch):
    whole = train(tmp_path / 'whole', epochs=3)

    def interrupt(metric, results):
        if results[0] != 1:
            raise KeyboardInterrupt
        return dict(value=1)
    with monkeypatch.context() as patch:
        patch.setattr(Value, 'compute_metrics', interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / 'resumed', epochs=3)
    assert train(tmp_path / 'resumed', epochs=3, resume=True) == whole


def test_a_config_without_validation_is_refused(tmp_path):
    with pytest.raises(ValueError, match='give val_dataloader'):
        train(tmp_path, epochs=1, val_dataloader=None, val_cfg=None, val_evaluator=None)
