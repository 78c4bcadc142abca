import subprocess
import sys
from pathlib import Path

import pytest

from image_folder import CONFIGS, generate_images

TOOLS = CONFIGS.parent / 'tools'


@pytest.fixture(scope='session')
def images(tmp_path_factory) -> Path:
    return generate_images(tmp_path_factory.mktemp('data') / 'imagenet')


@pytest.fixture(scope='session')
def tool(environment_of_mmpretrain):
    """Run a tool, with MMPretrain, in a process of its own; what it printed."""

    def run(name, *args, status=0, cwd=None):
        done = subprocess.run(
            [sys.executable, str(TOOLS / name), *map(str, args)], cwd=cwd,
            env=environment_of_mmpretrain, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        assert done.returncode == status, done.stdout[-5000:]
        return done.stdout

    return run
