"""The operator's tests once more, on a GPU: see fused.py."""
import subprocess
import sys
from pathlib import Path


def test_operator_on_the_gpu(gpu_environment):
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-n', '4', '-p', 'no:cacheprovider',
         Path(__file__).parent],
        env=gpu_environment | {'SA_MMDET_TEST_DEVICE': 'cuda'}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
