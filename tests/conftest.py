import os
from pathlib import Path

# PyTorch reads this when it is imported, here and in the processes that tests start.
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
from mmengine.registry import DefaultScope

ROOT = Path(__file__).parents[1]
COCO_TINY = ROOT.parent / 'shared/data/coco_tiny'

# Configs name their data relative to the folder where a command is started; no test needs a GPU.
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
# Triton reads this when the kernels are imported; only tests that force them come there on CPU.
os.environ.setdefault('TRITON_INTERPRET', '1')


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the tests that take minutes')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--slow'):
        return
    for item in items:
        if 'slow' in item.keywords:
            item.add_marker(pytest.mark.skip(reason='takes minutes: run with --slow'))


@pytest.fixture(autouse=True)
def _no_default_scope():
    """Building by hand starts without MMEngine's default scope, whatever a test before set."""
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session')
def coco_tiny() -> Path:
    """80 + 80 images of COCO 2017 in COCO's own layout."""
    if not COCO_TINY.is_dir():
        pytest.skip(f'{COCO_TINY}, real COCO images, is not here')
    return COCO_TINY
