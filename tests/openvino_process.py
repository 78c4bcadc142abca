"""OpenVINO in a process of its own: its threads do not outlive a test."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = '''
import sys
import numpy as np
import openvino

compiled = openvino.Core().compile_model(sys.argv[1], 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
outputs = compiled([np.load(sys.argv[2])])
np.savez(sys.argv[3], *(outputs[output] for output in compiled.outputs))
'''


def outputs_of(file: Path, image: np.ndarray, folder: Path) -> list[np.ndarray]:
    """Return what an ONNX file computes of an image, in the order of its outputs."""
    pytest.importorskip('openvino', reason='openvino is not installed')
    np.save(folder / 'image.npy', image)
    subprocess.run([sys.executable, '-c', PROGRAM, file, folder / 'image.npy',
                    folder / 'outputs.npz'], check=True)
    return list(np.load(folder / 'outputs.npz').values())
