"""The Triton implementation: float32, bfloat16 and float16 on CUDA, computed in float32.

Tested under Triton's interpreter: with TRITON_INTERPRET=1 at import it takes CPU tensors if forced.
Not run on a GPU yet, only compiled for one: neither its speed nor the choice of tiles below is
measured. A channels_last tensor gets 32 channels a program, which leaves most of a GPU idle where
there are few channels and images.
"""
import os
from importlib.util import find_spec

import torch
from torch import Tensor

from .layout import memory_format

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

# Elements of a plane that a program holds, 16 a thread. A plane up to this size is read once.
BLOCK = 8192
ELEMENTS_A_WARP = 512
# Planes smaller than this share a program.
SHARED = 2048
# Neighbouring channels of a channels_last tensor, which are read together, and pixels. 8 elements
# a thread: each has an address of its own.
CHANNELS, PIXELS = 32, 64
CHANNELS_LAST_ELEMENTS_A_WARP = 256


def unavailable() -> str | None:
    """Why this implementation cannot be used, None if it can."""
    if find_spec('triton') is None:
        return 'triton is not installed; it comes with torch for CUDA'
    if not (INTERPRETED or torch.cuda.is_available()):
        return 'there is no CUDA device'
    return None


def takes_device(device: torch.device) -> bool:
    return device.type == ('cpu' if INTERPRETED else 'cuda')


def forward(x: Tensor, *parameters: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Output and statistics, as ``reference.reference_forward``."""
    from .triton_kernels import forward_kernel
    layout = memory_format(x)
    y = torch.empty_like(x, memory_format=layout)
    stats = x.new_zeros(*x.shape[:2], 2, dtype=torch.float64)
    if x.numel():
        x = _with_contiguous_planes(x, layout)
        _launch(forward_kernel, x, (x, y, stats), parameters, groups, eps, strides_of=(x, y))
    return y, stats


def backward(dy: Tensor, x: Tensor, stats: Tensor, *parameters: Tensor, groups: int,
             input_gradient: bool) -> tuple[Tensor, Tensor]:
    """dx, which is empty without ``input_gradient``, and the planes' sums: as ``cpu.backward``."""
    from .triton_kernels import backward_kernel
    layout = memory_format(x)
    dx = torch.empty_like(x, memory_format=layout) if input_gradient else x.new_empty(0)
    sums = torch.zeros_like(stats)
    if x.numel():
        x, dy = _with_contiguous_planes(x, layout), _with_contiguous_planes(dy, layout)
        _launch(backward_kernel, x, (dy, x, stats, dx, sums), parameters, groups,
                strides_of=(dy, x, dx if input_gradient else x), INPUT_GRADIENT=input_gradient)
    return dx, sums


def _launch(kernel, x: Tensor, tensors: tuple[Tensor, ...], parameters: tuple[Tensor, ...],
            groups: int, *numbers: float, strides_of: tuple[Tensor, ...], **constants) -> None:
    n, c, h, w = x.shape
    area = h * w
    power = 1 << (area - 1).bit_length()
    if memory_format(x) == torch.channels_last:
        planes, block = CHANNELS, min(power, PIXELS)
        warps = max(1, planes * block // CHANNELS_LAST_ELEMENTS_A_WARP)
    else:
        block = min(power, BLOCK)
        planes = max(1, SHARED // block)
        warps = max(1, planes * block // ELEMENTS_A_WARP)
    strides = [stride for tensor in strides_of for stride in _strides(tensor)]
    with torch.cuda.device_of(x):
        # fusion would round differently what is written to cancel
        kernel[(-(-n * c // planes), )](
            *tensors, *(parameter.contiguous() for parameter in parameters), n * c, c,
            c // (2 * groups), area, *numbers, *strides, **constants, PLANES=planes, BLOCK=block,
            ONE_BLOCK=area <= block, num_warps=warps, enable_fp_fusion=False)


def _with_contiguous_planes(x: Tensor, layout: torch.memory_format) -> Tensor:
    h, w = x.shape[2:]
    rows = w == 1 or x.stride(3) == 1
    columns = h == 1 or x.stride(2) == w
    if layout == torch.contiguous_format and rows and columns:
        return x
    return x.contiguous(memory_format=layout)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of image, channel and pixel."""
    pixel = x.shape[1] if memory_format(x) == torch.channels_last else 1
    return x.stride(0), x.stride(1), pixel
