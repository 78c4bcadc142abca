"""Training in deterministic mode is the same again, bit for bit."""
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from sa_mmdet.apps.datasets.shapes import generate_shapes

CONFIG = Path(__file__).parents[1] / 'configs/quickstart/mask-rcnn_sa-r50_fpn_shapes.py'


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def deterministic():
    yield dict(seed=1, deterministic=True)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes') / 'data'
    generate_shapes(root, train=4, val=1, size=96)
    return root


def train(data, work_dir, norm_eval, randomness):
    """Weights and statistics after two iterations of the quickstart's detector."""
    config = Config.fromfile(CONFIG)
    config.merge_from_dict({
        'work_dir': str(work_dir),
        'experiment_name': work_dir.name,
        'randomness': randomness,
        'model.backbone.norm_eval': norm_eval,
        'model.backbone.base_channels': 32,
        'model.neck.in_channels': [128, 256, 512, 1024],
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.data_root': str(data),
        'train_cfg.max_epochs': 1,
        'param_scheduler.0.start_factor': 1.,
        'param_scheduler.1.T_max': 2,
        'default_hooks.checkpoint': None,
        'visualizer': None,  # MMDetection's lives as long as the process, and in its first work dir
        'log_level': 'WARNING',
    })
    for part in ('val_cfg', 'val_dataloader', 'val_evaluator'):
        config[part] = None
    config.train_cfg.pop('val_interval', None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        model = Runner.from_cfg(config).train()
    assert not [warning for warning in caught if 'determinis' in str(warning.message)]
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(('threads', 'norm_eval'), [
    (1, False),
    (2, True),
    pytest.param(1, True, marks=pytest.mark.slow),
    pytest.param(2, False, marks=pytest.mark.slow),
], indirect=['threads'])
def test_training_twice_gives_the_same_bits(data, tmp_path, threads, norm_eval, deterministic):
    """Where statistics are frozen, the operator is all that follows conv3."""
    first, second = (train(data, tmp_path / name, norm_eval, deterministic)
                     for name in ('first', 'second'))
    assert all(value.isfinite().all() for value in first.values())
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
