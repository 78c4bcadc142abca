"""SA-ResNet as deployed, compared with plain ResNet in the runtimes that deployments use."""
import io
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...models.deploy import for_deployment
from .backbone import BackboneCase, build_backbones
from .measure import Call, compare
from .variants import ATTENTION, BASELINE

DEPLOYED = f'{ATTENTION} deployed'


@dataclass(frozen=True, kw_only=True)
class DeployCase(BackboneCase):
    """What to measure: backbones on the CPU, in float32.

    Attributes:
        runtimes: some of ``RUNTIMES``.
    """

    runtimes: tuple[str, ...] = ()


def build_networks(case: DeployCase) -> dict[str, nn.Module]:
    """Return plain ResNet with folded batch norms, SAResNet as trained, and SAResNet as deployed.
    """
    networks = build_backbones(case)
    for network in networks.values():
        network.eval()
        network.requires_grad_(False)
    return {BASELINE: for_deployment(networks[BASELINE]), ATTENTION: networks[ATTENTION],
            DEPLOYED: for_deployment(networks[ATTENTION])}


def measure_deployed(case: DeployCase) -> Iterator[dict]:
    """Measure the networks in one runtime after another.

    Yields:
        The rows of ``measure.compare``, each with its 'pass', which is the runtime, and
        'file_bytes', the size of the ONNX file or of the weights as PyTorch saves them. In PyTorch,
        'peak_bytes' counts tensors. Elsewhere it counts the whole process with the network.
    """
    networks = build_networks(case)
    x = torch.randn(case.batch, 3, case.height, case.width,
                    generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        if any(runtime in OF_FILES for runtime in case.runtimes):
            for number, (name, network) in enumerate(networks.items()):
                files[name] = Path(folder, f'{number}.onnx')
                export(network, x, files[name])
        for runtime in case.runtimes:
            if runtime in OF_FILES:
                calls = {name: OF_FILES[runtime](file, x.numpy()) for name, file in files.items()}
                peaks = {name: peak_of_process(runtime, file, x) for name, file in files.items()}
                sizes = {name: file.stat().st_size for name, file in files.items()}
            else:
                calls = {name: OF_NETWORKS[runtime](network, x)
                         for name, network in networks.items()}
                peaks, sizes = None, {name: saved_bytes(network)
                                      for name, network in networks.items()}
            for row in compare(calls, case.device, case.repeats, peaks=peaks):
                yield {'pass': runtime, **row, 'file_bytes': sizes[row['name']]}


def missing_package(runtime: str) -> str | None:
    """Return a package that a runtime needs and that is not installed, or None."""
    needed = ('onnx', runtime) if runtime in OF_FILES else ()
    return next((name for name in needed if find_spec(name) is None), None)


def export(network: nn.Module, x: torch.Tensor, file: Path) -> None:
    """Export a network to ONNX for inputs of one size."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        torch.onnx.export(network, (x, ), str(file), dynamo=False, opset_version=17,
                          input_names=['image'])


def saved_bytes(network: nn.Module) -> int:
    """Return the size of the file with a network's weights."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return file.tell()


def _eager(network: nn.Module, x: torch.Tensor) -> Call:
    def call():
        with torch.no_grad():
            return network(x)
    return call


def _compiled(network: nn.Module, x: torch.Tensor) -> Call:
    return _eager(torch.compile(network, dynamic=False), x)


def _onnxruntime(file: Path, x: np.ndarray) -> Call:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(file), options, providers=['CPUExecutionProvider'])
    return lambda: session.run(None, {'image': x})


def _openvino(file: Path, x: np.ndarray) -> Call:
    import openvino
    compiled = openvino.Core().compile_model(str(file), 'CPU', {
        'INFERENCE_NUM_THREADS': torch.get_num_threads(), 'INFERENCE_PRECISION_HINT': 'f32'})
    request = compiled.create_infer_request()
    return lambda: request.infer({'image': x})


OF_NETWORKS: dict[str, Callable[[nn.Module, torch.Tensor], Call]] = {
    'eager': _eager, 'torch.compile': _compiled}
OF_FILES: dict[str, Callable[[Path, np.ndarray], Call]] = {
    'onnxruntime': _onnxruntime, 'openvino': _openvino}
RUNTIMES = *OF_NETWORKS, *OF_FILES

# runs in its own process and prints that process's peak memory
_PEAK = '''
import sys
from pathlib import Path
import numpy as np
import {runtime}
from sa_mmdet.apps.speed import deployed

def memory(kind):
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))

deployed.torch.set_num_threads({threads})
Path('/proc/self/clear_refs').write_text('5')  # reset the peak
before = memory('VmRSS')
call = deployed.OF_FILES[{runtime!r}](Path(sys.argv[1]), np.zeros({shape}, np.float32))
call(), call()
print(1024 * (memory('VmHWM') - before))
'''


def peak_of_process(runtime: str, file: Path, x: torch.Tensor) -> int:
    """Return the peak memory, in bytes, of a process that loads a network and calls it twice."""
    program = _PEAK.format(runtime=runtime, threads=torch.get_num_threads(), shape=tuple(x.shape))
    process = subprocess.run([sys.executable, '-W', 'ignore', '-c', program, str(file)],
                             capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f'{runtime} cannot run {file.name}: {process.stderr[-500:]}')
    return int(process.stdout.split()[-1])
