"""Compile the Triton kernels for an H100, on a machine without a GPU, and see what is launched.

Triton's interpreter runs what its compiler refuses. Run by test_compilation.py.
"""
import os

os.environ['TRITON_INTERPRET'] = '0'

import torch
import triton
from triton.backends.compiler import GPUTarget

from sa_mmdet.ops import triton_launch

launches = []


class Launcher:
    """Takes down what a compiled kernel is launched with."""

    def __init__(self, source, metadata):
        self.kernel = source.fn

    def __call__(self, *launch):
        arguments = launch[-len(self.kernel.arg_names):]
        launches.append((self.kernel.__name__, launch[:3], [
            argument.dtype if isinstance(argument, torch.Tensor) else argument
            for argument in arguments]))


class Utilities:

    def load_binary(self, *_):
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, threads

    def get_device_properties(self, device):
        return dict(max_shared_mem=232448)


class Driver:
    launcher_cls, utils = Launcher, Utilities()

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget('cuda', 90, 32)


def compute(dtype: torch.dtype, layout: torch.memory_format, area: tuple[int, int],
            in_bottleneck: bool) -> None:
    """Both passes, each twice: the second time by what is remembered."""
    z = torch.zeros(2, 256, *area, dtype=dtype).to(memory_format=layout)
    batch_norm = tuple(torch.ones(4, 256)) if in_bottleneck else None
    identity = z if in_bottleneck else None
    parameters = tuple(torch.zeros(6, 2))
    settings = batch_norm, parameters, 64, 1e-5, 1e-5
    passes = []
    for _ in range(2):
        _, stats = triton_launch.forward(z, identity, *settings)
        triton_launch.backward(z, z, identity, stats, *settings, True)
        passes.append(launches.copy())
        launches.clear()
    assert passes[0] == passes[1], passes
    print(dtype, layout, area, [name for name, *_ in passes[0]])


triton.runtime.driver.set_active(Driver())
for layout in (torch.contiguous_format, torch.channels_last):
    for area in ((7, 7), (25, 42)):
        compute(torch.bfloat16, layout, area, in_bottleneck=True)
    compute(torch.float32, layout, (25, 42), in_bottleneck=True)
    compute(torch.float16, layout, (25, 42), in_bottleneck=False)
assert triton_launch._compiled
