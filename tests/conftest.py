import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

# PyTorch reads this when it is imported, here and in the processes that tests start.
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')
# No test needs a GPU. Where there is one, tests/ops/test_on_gpu.py runs the operator's tests on it,
# in processes that have SA_MMDET_TEST_DEVICE=cuda.
if os.environ.get('SA_MMDET_TEST_DEVICE') != 'cuda':
    if 'CUDA_VISIBLE_DEVICES' not in os.environ:
        os.environ |= {'CUDA_VISIBLE_DEVICES': '', 'SA_MMDET_TEST_HIDES_GPU': '1'}
    # Triton reads this when it is imported; only tests that force the kernels come there on CPU.
    os.environ.setdefault('TRITON_INTERPRET', '1')

import pytest
import torch
from hypothesis import HealthCheck, settings
from mmengine.registry import DefaultScope

from sa_mmdet.checkpoint.read import REFUSE_CODE, TRUST_CODE
from sa_mmdet.ops import forget_choices

ROOT = Path(__file__).parents[1]
COCO_TINY = ROOT.parent / 'shared/data/coco_tiny'
# tools/install.sh puts torchvision there, whether it loads beside this torch or not
ASIDE = Path(sys.prefix) / 'torchvision'

# A shell has what it starts with & ignore Ctrl-C, and with it what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Property tests try the same examples every time, so that what passed keeps passing. To try others:
# pytest tests/ops/test_properties.py --hypothesis-profile=explore [--hypothesis-seed=N]
# On a GPU most examples are kernels to compile.
settings.register_profile(
    'repeatable', derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow],
    max_examples=10 if os.environ.get('SA_MMDET_TEST_DEVICE') == 'cuda' else 60)
settings.register_profile('fast', settings.get_profile('repeatable'), max_examples=5)
settings.register_profile('explore', settings.get_profile('repeatable'), derandomize=False,
                          max_examples=1000, print_blob=True)
settings.load_profile('repeatable')


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


@pytest.fixture(autouse=True)
def _code_in_checkpoints(monkeypatch):
    """Our tools set it for their process, which in a test is this one."""
    monkeypatch.delenv(REFUSE_CODE, raising=False)
    monkeypatch.delenv(TRUST_CODE, raising=False)


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Run a program of tools/ in this process: its exit status or message, and all that it told."""
    def run(name, *args):
        path = str(ROOT / f'tools/{name}.py')
        monkeypatch.setattr(sys, 'argv', [path, *map(str, args)])
        code, handler = 0, signal.getsignal(signal.SIGTERM)
        try:
            runpy.run_path(path, run_name='__main__')
        except SystemExit as exit_:
            code = exit_.code
        finally:
            signal.signal(signal.SIGTERM, handler)
        output = capsys.readouterr()
        return code, f'{output.out}{output.err}{code}'
    return run


@pytest.fixture
def force_ops(monkeypatch):
    """Sets SA_MMDET_OPS for the rest of a test."""
    def force(implementation):
        monkeypatch.setenv('SA_MMDET_OPS', implementation)
        forget_choices()
    yield force
    forget_choices()


class _MakesAFolder:

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path), )


@pytest.fixture
def attack(tmp_path) -> Path:
    """A checkpoint that makes the folder 'attacked' beside it when all that it holds is loaded."""
    path = tmp_path / 'attack.pth'
    torch.save(
        dict(state_dict=dict(a=torch.ones(2)), meta=_MakesAFolder(tmp_path / 'attacked')), path)
    return path


@pytest.fixture(scope='session')
def gpu_environment() -> dict[str, str]:
    """That of processes that see the GPU; skips where there is none, and in these processes."""
    if 'SA_MMDET_TEST_DEVICE' in os.environ:
        pytest.skip('this is the run on SA_MMDET_TEST_DEVICE')
    variables = {key: value for key, value in os.environ.items() if 'PYTEST' not in key}
    if variables.pop('SA_MMDET_TEST_HIDES_GPU', None):
        del variables['CUDA_VISIBLE_DEVICES']
    variables.pop('TRITON_INTERPRET', None)
    seen = subprocess.run(
        [sys.executable, '-c', 'import sys, torch; sys.exit(not torch.cuda.is_available())'],
        env=variables, capture_output=True)
    if seen.returncode:
        pytest.skip('there is no CUDA device')
    return variables


@pytest.fixture(scope='session')
def coco_tiny() -> Path:
    """80 + 80 images of COCO 2017 in COCO's own layout."""
    if not COCO_TINY.is_dir():
        pytest.skip(f'{COCO_TINY}, real COCO images, is not here')
    return COCO_TINY


@pytest.fixture(scope='session')
def environment_of_mmpretrain() -> dict[str, str]:
    """That of processes that import MMPretrain; skips where it cannot be imported."""
    variables = dict(os.environ)
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        if ASIDE.is_dir():
            variables['PYTHONPATH'] = os.pathsep.join(
                [str(ROOT / 'tests/without_operators'), str(ASIDE)])
    code = 'import sys; from sa_mmdet.environment import mmpretrain_problem as p; sys.exit(p())'
    tried = subprocess.run([sys.executable, '-c', code], env=variables, text=True,
                           capture_output=True)
    if tried.returncode:
        pytest.skip(tried.stderr.strip().splitlines()[-1])
    return variables
