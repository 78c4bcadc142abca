"""Triton compiles the kernels, and what is remembered of that launches them as Triton does."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fused import MOVE_TO


@pytest.mark.skipif(MOVE_TO == 'cuda', reason='there the other tests compile them')
def test_kernels_compile_and_are_launched_alike_again():
    done = subprocess.run([sys.executable, Path(__file__).with_name('compile_kernels.py')],
                          env=os.environ | dict(TRITON_INTERPRET='0'), capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert done.stdout.count('add_up_kernel') == 16
