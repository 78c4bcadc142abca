"""Compile the Triton kernels for GPUs, on a machine without one, and check what is launched.

Triton's interpreter runs what its compiler refuses. Run by test_compilation.py.
"""
import torch

from sa_mmdet.apps.speed.compiled import compile_operator, driver_of, launches
from sa_mmdet.apps.speed.operator import OperatorCase
from sa_mmdet.ops import triton_launch

LAYOUTS = torch.contiguous_format, torch.channels_last


def passes(dtype, layout, size, channels=256, groups=64, in_bottleneck=True, input_gradients=True):
    """Both passes, as a call."""
    z = torch.empty(2, channels, *size, dtype=dtype, device='meta').to(memory_format=layout)
    batch_norm = (torch.empty(channels, device='meta'), ) * 4 if in_bottleneck else None
    identity = z if in_bottleneck else None
    parameters = (torch.empty(channels // (2 * groups), device='meta'), ) * 6
    settings = batch_norm, parameters, groups, 1e-5, 1e-5

    def call():
        _, stats = triton_launch.forward(z, identity, *settings)
        triton_launch.backward(z, z, identity, stats, *settings, input_gradients)
    return call


def check_launched_again(capability, *case, **options):
    """What is remembered is launched with the same arguments as by Triton."""
    call = passes(*case, **options)
    compiled = launches(capability, call)
    remembered = triton_launch._compiled.values()
    assert len(remembered) == len(compiled)
    assert sum('min.NaN.f32' in kernel.asm['ptx'] for kernel in remembered) >= 2, (
        'a limit that loses a NaN')
    driver_of(capability).launches = []
    call()
    assert driver_of(capability).launches == compiled
    print(capability, *case, [launch.kernel for launch in compiled])


def check_limits(dtype, channels_last):
    """At ResNet-50's stages, on sm_90: the limits of docs/performance.md."""
    rows = list(compile_operator(OperatorCase(batch=2, dtype=dtype, channels_last=channels_last,
                                              bottleneck=True), (90, )))
    for row in rows:
        assert row['spilled_bytes'] == 0, row
        assert row['registers'] <= 128, row
        if row['stage'] == 1 and channels_last and row['instructions']:
            assert row['programs'] >= 4 * 132, row
        if row['kernel'] in ('output_kernel', 'moments_kernel', 'gradient_moments_kernel') or (
                row['kernel'] in ('forward_kernel', 'backward_kernel') and row['stage'] < 4):
            assert row['access_bytes'] == 16, row
    for pass_, most in (('forward', 60), ('backward', 100)):
        for stage in range(1, 5):
            count = sum(row['instructions'] or 0 for row in rows
                        if (row['pass'], row['stage']) == (pass_, stage))
            assert 15 < count < most, (pass_, stage, count)


def check_number_of_programs(layout):
    """A training at one size compiles at most 8, with the first stage frozen."""
    binaries = set()
    for channels, height, width in ((256, 200, 336), (512, 100, 168), (1024, 50, 84),
                                    (2048, 25, 42)):
        call = passes(torch.bfloat16, layout, (height, width), channels)
        binaries |= {launch.binary for launch in launches(90, call)
                     if channels > 256 or launch.kernel == 'forward_kernel'
                     or layout == torch.channels_last}
    assert len(binaries) <= 8, len(binaries)


for layout in LAYOUTS:
    for size in ((7, 7), (25, 42), (1, 1)):
        check_launched_again(90, torch.bfloat16, layout, size)
    check_launched_again(90, torch.bfloat16, layout, (256, 320), channels=4, groups=1)
    check_launched_again(90, torch.float32, layout, (25, 42), input_gradients=False)
    check_launched_again(90, torch.float16, layout, (25, 42), in_bottleneck=False)
    for capability in (80, 100):
        check_launched_again(capability, torch.float32, layout, (25, 42))
    check_number_of_programs(layout)
    for dtype in (torch.bfloat16, torch.float32):
        check_limits(dtype, layout == torch.channels_last)
