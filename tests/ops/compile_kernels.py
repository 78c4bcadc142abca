"""Compile the Triton kernels for GPUs, on a machine without one, and see what is launched.

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
    """Of one GPU for each compute capability, whose number is that."""

    launcher_cls, utils, capability = Launcher, Utilities(), 90

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget('cuda', self.capability, 32)


def compute(capability: int, dtype: torch.dtype, layout: torch.memory_format,
            size: tuple[int, int], in_bottleneck: bool = True, input_gradients: bool = True
            ) -> None:
    """Both passes, each twice: the second time by what is remembered."""
    Driver.capability = capability
    triton_launch._compiled.clear()
    channels, groups = (256, 64) if size[0] < 99 else (4, 1)
    z = torch.zeros(2, channels, *size, dtype=dtype).to(memory_format=layout)
    batch_norm = tuple(torch.ones(4, channels)) if in_bottleneck else None
    identity = z if in_bottleneck else None
    parameters = tuple(torch.zeros(6, channels // (2 * groups)))
    settings = batch_norm, parameters, groups, 1e-5, 1e-5
    passes = []
    for _ in range(2):
        _, stats = triton_launch.forward(z, identity, *settings)
        triton_launch.backward(z, z, identity, stats, *settings, input_gradients)
        passes.append(launches.copy())
        launches.clear()
    assert passes[0] == passes[1], passes
    names = [name for name, *_ in passes[0]]
    assert len(triton_launch._compiled) == len(names)
    programs = [compiled.asm['ptx'] for compiled in triton_launch._compiled.values()]
    assert sum('min.NaN.f32' in program for program in programs) >= 2, 'a limit that loses a NaN'
    print(capability, dtype, layout, size, names)


triton.runtime.driver.set_active(Driver())
for layout in (torch.contiguous_format, torch.channels_last):
    for size in ((7, 7), (25, 42), (256, 320)):
        compute(90, torch.bfloat16, layout, size)
    compute(90, torch.float32, layout, (25, 42), input_gradients=False)
    compute(90, torch.float16, layout, (25, 42), in_bottleneck=False)
    for capability in (80, 100):
        compute(capability, torch.float32, layout, (25, 42))
