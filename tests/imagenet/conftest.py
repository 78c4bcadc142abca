import os
import subprocess
import sys
from pathlib import Path

import pytest

from image_folder import CONFIGS, generate_images

TOOLS = CONFIGS.parent / 'tools'
# tools/install.sh puts torchvision there where it does not load beside this torch
ASIDE = Path(sys.prefix) / 'torchvision'


@pytest.fixture(scope='session')
def images(tmp_path_factory) -> Path:
    return generate_images(tmp_path_factory.mktemp('data') / 'imagenet')


@pytest.fixture(scope='session')
def environment() -> dict[str, str]:
    """That of processes that import MMPretrain; skips where it cannot be imported."""
    variables = dict(os.environ)
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        if ASIDE.is_dir():
            variables['PYTHONPATH'] = os.pathsep.join(
                [str(Path(__file__).with_name('without_operators')), str(ASIDE)])
    tried = subprocess.run([sys.executable, '-c', 'import mmpretrain.apis'], env=variables,
                           capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f'MMPretrain does not import: {tried.stderr.strip().splitlines()[-1]}')
    return variables


@pytest.fixture(scope='session')
def tool(environment):
    """Run a tool, with MMPretrain, in a process of its own; what it printed."""

    def run(name, *args, status=0, cwd=None):
        done = subprocess.run(
            [sys.executable, str(TOOLS / name), *map(str, args)], env=environment, cwd=cwd,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == status, done.stdout[-5000:]
        return done.stdout

    return run
