"""The Triton implementation: float32, bfloat16 and float16 on CUDA, computed in float32.

It is tested on a GPU and in Triton's interpreter. With TRITON_INTERPRET=1 at import, it takes CPU
tensors if forced. The plans below come from a sweep on an H200 and from the compiled kernels
(docs/performance.md). Every program writes its own values, and sums over programs have a fixed
order. There are no atomic operations, whose order could change results. Results don't depend on
other images either.
"""
import math
import os
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference import BatchNorm, Parameters, gradient_dtype, memory_format

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REMEDY = ('Triton needs an NVIDIA driver and, to compile what starts its kernels, a C compiler '
          '(Debian and Ubuntu: apt-get install gcc).')

INTERPRETED = os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true', 'on', 'yes', 'y')


class Plan(NamedTuple):
    """How the elements of a tensor are divided.

    Attributes:
        elements_a_warp: elements that a warp takes of contiguous planes.
        columns, warps: channels that a program takes of a channels_last tensor, and its warps,
            whose threads read 16 bytes at a time.
    """

    elements_a_warp: int
    columns: int
    warps: int


# by bytes per element
FORWARD = {2: Plan(512, 32, 4), 4: Plan(256, 32, 4)}
BACKWARD = {2: Plan(512, 64, 2), 4: Plan(256, 32, 4)}
# Contiguous planes: a program holds an eighth of a plane's elements, within these bounds. Planes up
# to the smallest block are read once, by programs of one warp. Planes below SHARED share a program.
SMALLEST_BLOCK, BLOCK, SHARED = 256, 8192, 64
# channels_last: a program takes a 32nd of a plane's pixels, within these bounds. The second line
# says how many channels and chunks are merged at a time.
SMALLEST_CHUNK, CHUNK = 128, 256
MERGED_CHANNELS, MERGED_CHUNKS, MERGING_WARPS = 16, 64, 4
# the rows of sums, and the channels, that a program adds up
ROWS, CHANNELS = 128, 64

# compiled kernels, by all that Triton specialises them for, and how many are remembered
_compiled: dict[tuple, Any] = {}  # Triton's CompiledKernel
MOST_COMPILED = 10000


def device() -> torch.device:
    """Return the current device among those that this implementation takes."""
    if INTERPRETED:
        return torch.device('cpu')
    return torch.device('cuda', torch.cuda.current_device() if torch.cuda.is_available() else 0)


def takes_device(device: torch.device) -> bool:
    """Return whether this implementation takes tensors on a device."""
    return device.type == ('cpu' if INTERPRETED else 'cuda')


def unavailable(device: torch.device) -> str | None:
    """Return why this implementation cannot be used, or None if no reason is known."""
    if find_spec('triton') is None:
        return ('Triton is not installed. It comes with torch for CUDA. '
                'Install it with `pip install triton`.')
    if INTERPRETED:
        return None if takes_device(device) else 'TRITON_INTERPRET is set: unset it.'
    if torch.version.hip:
        return f'it needs an NVIDIA GPU, but this is torch for ROCm {torch.version.hip}.'
    if not torch.cuda.is_available():
        return 'there is no CUDA device.'
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 0):
        return ('Triton needs a GPU of compute capability 7.0 or more, '
                f'this has {".".join(map(str, capability))}.')
    return None


def forward(z: Tensor, identity: Tensor | None, batch_norm: BatchNorm | None,
            parameters: Parameters, groups: int, eps: float, bn_eps: float
            ) -> tuple[Tensor, Tensor]:
    """Compute what ``reference.forward`` does. A batch norm needs an identity."""
    layout = memory_format(z)
    y = torch.empty_like(z, memory_format=layout)
    stats = z.new_empty(*z.shape[:2], 2, dtype=torch.float64)
    if not z.numel():
        return y, stats.zero_()
    z = _in_layout(z, layout)
    identity = None if identity is None else _in_layout(identity, layout)
    kernels = _Kernels(z, batch_norm, parameters, groups, eps, bn_eps)
    with torch.cuda.device_of(z):
        if layout == torch.channels_last:
            kernels.forward_channels_last(z, identity, y, stats)
        else:
            kernels.forward_contiguous(z, identity, y, stats)
    return y, stats


def backward(
        dout: Tensor, z: Tensor, out: Tensor | None, stats: Tensor, batch_norm: BatchNorm | None,
        parameters: Parameters, groups: int, eps: float, bn_eps: float,
        input_gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute what ``reference.backward`` does."""
    layout = memory_format(z)
    dz, didentity = (
        torch.empty_like(z, memory_format=layout) if wanted else z.new_empty(0)
        for wanted in (input_gradients, input_gradients and out is not None))
    new = stats.new_empty if z.numel() else stats.new_zeros
    of_batch_norm = (new if batch_norm else stats.new_zeros)(
        2, z.shape[1], dtype=gradient_dtype(batch_norm and batch_norm[:2]))
    of_parameters = new(6, parameters[4].numel(), dtype=gradient_dtype(parameters))
    if z.numel():
        dout, z = _in_layout(dout, layout), _in_layout(z, layout)
        out = None if out is None else _in_layout(out, layout)
        sums = new(*z.shape[:2], 4 if batch_norm else 2)
        kernels = _Kernels(z, batch_norm, parameters, groups, eps, bn_eps)
        with torch.cuda.device_of(z):
            if layout == torch.channels_last:
                kernels.backward_channels_last(dout, z, out, stats, dz, didentity, sums)
            else:
                kernels.backward_contiguous(dout, z, out, stats, dz, didentity, sums)
            kernels.add_up(sums, of_parameters, of_batch_norm)
    return dz, didentity, of_batch_norm, of_parameters


class _Kernels:
    """Launches the kernels for tensors of one shape, with one set of parameters."""

    def __init__(self, z: Tensor, batch_norm: BatchNorm | None, parameters: Parameters,
                 groups: int, eps: float, bn_eps: float):
        self.images, self.channels, height, width = z.shape
        self.area, self.groups = height * width, int(groups)
        self.p = self.channels // (2 * self.groups)
        self.eps, self.bn_eps = float(eps), float(bn_eps)  # 0 would be another type to Triton
        for tensors, size in ((parameters, self.p), (batch_norm or (), self.channels)):
            if not {*map(Tensor.numel, tensors)} <= {size}:  # kernels would read past the end
                raise ValueError(f'parameters must have {size} values, got '
                                 f'{[tensor.numel() for tensor in tensors]}')
        self.has_batch_norm = batch_norm is not None
        self.parameters = *map(Tensor.contiguous, (*parameters, *(batch_norm or ()))),
        if batch_norm is None:
            self.parameters += (None, ) * 4

    def forward_contiguous(self, z: Tensor, identity: Tensor | None, y: Tensor, stats: Tensor):
        from .triton_kernels import forward_kernel
        self._contiguous(forward_kernel, FORWARD[z.itemsize], (z, identity, y, stats),
                         (z, identity, y), ADD_RELU=identity is not None)

    def backward_contiguous(self, dout: Tensor, z: Tensor, out: Tensor | None, stats: Tensor,
                            dz: Tensor, didentity: Tensor, sums: Tensor):
        from .triton_kernels import backward_kernel
        wanted = dz.numel() > 0
        self._contiguous(backward_kernel, BACKWARD[z.itemsize],
                         (dout, z, out, stats, dz, didentity, sums),
                         (dout, z, out, dz if wanted else None,
                          didentity if didentity.numel() else None),
                         ADD_RELU=out is not None, INPUT_GRADIENT=wanted)

    def _contiguous(self, kernel, plan: Plan, tensors: tuple[Tensor | None, ...],
                    strided: tuple[Tensor | None, ...], **constants):
        planes, block, warps = contiguous_plan(self.area, plan)
        strides = [stride for tensor in strided
                   for stride in (tensor.stride()[:2] if tensor is not None else (0, 0))]
        number = self.images * self.channels
        unit = math.gcd(16, self.area, *strides)
        one_block = self.area <= block
        # a thread adds up its own sums at once, which saves registers
        sums = block if one_block else 32 * warps * min(unit, 16 // strided[0].itemsize)
        _launch(kernel, (-(-number // planes), 1, 1), warps, (*tensors, *self.parameters),
                (number, self.channels, self.p, self.area, self.eps, self.bn_eps, *strides),
                BATCH_NORM=self.has_batch_norm, **constants,
                UNIT=unit, PLANES=planes, SUMS=sums, BLOCK=block, ONE_BLOCK=one_block)

    def forward_channels_last(self, z: Tensor, identity: Tensor | None, y: Tensor, stats: Tensor):
        from . import triton_channels_last as kernels
        plan = FORWARD[z.itemsize]
        columns, rows, chunk, chunks = channels_last_plan(
            self.channels, self.area, z.itemsize, plan)
        over_pixels, merging = self._grids(columns, chunks)
        moments = z.new_empty(self.images * chunks * 3 * self.channels, dtype=torch.float32)
        affine = z.new_empty(self.images * 8 * self.channels, dtype=torch.float32)
        _launch(kernels.moments_kernel, over_pixels, plan.warps, (z, moments),
                (self.channels, self.area, chunks), CHUNK=chunk, CHANNELS=columns)
        _launch(kernels.statistics_kernel, merging, MERGING_WARPS,
                (moments, stats, affine, *self.parameters),
                (self.channels, self.p, self.area, chunks, chunk, self.eps, self.bn_eps),
                BATCH_NORM=self.has_batch_norm, CHUNKS=MERGED_CHUNKS, CHANNELS=MERGED_CHANNELS)
        _launch(kernels.output_kernel, over_pixels, plan.warps, (z, identity, y, affine),
                (self.channels, self.area, chunks, chunk), BATCH_NORM=self.has_batch_norm,
                ADD_RELU=identity is not None, ROWS=rows, CHANNELS=columns // 2)

    def backward_channels_last(self, dout: Tensor, z: Tensor, out: Tensor | None, stats: Tensor,
                               dz: Tensor, didentity: Tensor, sums: Tensor):
        from . import triton_channels_last as kernels
        plan = BACKWARD[z.itemsize]
        columns, rows, chunk, chunks = channels_last_plan(
            self.channels, self.area, z.itemsize, plan)
        over_pixels, merging = self._grids(columns, chunks)
        moments = z.new_empty(self.images * chunks * 4 * self.channels, dtype=torch.float32)
        affine = z.new_empty(self.images * 8 * self.channels, dtype=torch.float32)
        _launch(kernels.gradient_moments_kernel, over_pixels, plan.warps,
                (dout, z, out, stats, didentity, moments, *self.parameters),
                (self.channels, self.p, self.area, chunks, chunk, self.eps, self.bn_eps),
                BATCH_NORM=self.has_batch_norm, ADD_RELU=out is not None,
                INPUT_GRADIENT=dz.numel() > 0, ROWS=rows, CHANNELS=columns // 2)
        _launch(kernels.gradient_sums_kernel, merging, MERGING_WARPS,
                (moments, stats, affine, sums, *self.parameters),
                (self.channels, self.p, self.area, chunks, self.eps, self.bn_eps),
                BATCH_NORM=self.has_batch_norm, CHUNKS=MERGED_CHUNKS, CHANNELS=MERGED_CHANNELS)
        if dz.numel():
            _launch(kernels.gradient_kernel, over_pixels, plan.warps,
                    (dout if out is None else didentity, z, affine, dz),
                    (self.channels, self.area, chunks, chunk), BATCH_NORM=self.has_batch_norm,
                    ROWS=rows, CHANNELS=columns // 2)

    def _grids(self, columns: int, chunks: int) -> tuple[tuple[int, int, int], ...]:
        """Return the grids of the kernels over pixels, and of the kernels that merge chunks."""
        return ((self.images * chunks * -(-self.channels // columns), 1, 1),
                (self.images, -(-self.channels // MERGED_CHANNELS), 1))

    def add_up(self, sums: Tensor, of_parameters: Tensor, of_batch_norm: Tensor):
        from .triton_kernels import add_up_kernel
        blocks = -(-self.channels // CHANNELS) if self.has_batch_norm else 0
        _launch(add_up_kernel, (self.p + blocks, 1, 1), 1,
                (sums, of_parameters, of_batch_norm, self.parameters[2], *self.parameters[4:6]),
                (self.images, self.channels, self.p, self.images * self.groups),
                BATCH_NORM=self.has_batch_norm, ROWS=ROWS, CHANNELS=CHANNELS)


def _launch(kernel, grid: tuple[int, int, int], warps: int, tensors: tuple[Tensor | None, ...],
            numbers: tuple[float, ...], **constants) -> None:
    """Launch a kernel. The arguments of each kind are in the kernel's order.

    A launch through Triton first looks up the compiled kernel, in twice the time of the launch
    itself. So the compiled kernel is remembered, by all that Triton may compile it again for:
    dtypes, pointers that are not a multiple of 16 bytes, numbers and constants.
    """
    key = (kernel, tensors[0].device, warps, *constants.values(), *numbers, *[
        tensor is None or (tensor.dtype, tensor.data_ptr() % 16) for tensor in tensors])
    if compiled := _compiled.get(key):
        compiled[grid](*tensors, *numbers, *constants.values())
        return
    # no fusion into FMA: it would round terms that should cancel in different ways
    compiled = kernel[grid](*tensors, *numbers, **constants, num_warps=warps,
                            enable_fp_fusion=False)
    if _takes_constants():
        if len(_compiled) >= MOST_COMPILED:
            _compiled.clear()
        _compiled[key] = compiled


@cache
def _takes_constants() -> bool:
    """Return whether a compiled kernel takes the kernel's own arguments, as from Triton 3.3 on."""
    import triton
    return not INTERPRETED and tuple(map(int, triton.__version__.split('.')[:2])) >= (3, 3)


@cache
def contiguous_plan(area: int, plan: Plan) -> tuple[int, int, int]:
    """Return a program's number of planes, of elements of a plane at a time, and of warps."""
    block = min(max(SMALLEST_BLOCK, _power_of_two(area // 8 + 1) // 2), BLOCK)
    if area > block:
        return 1, block, max(1, block // plan.elements_a_warp)
    block = _power_of_two(area)
    return max(1, SHARED // block), block, 1


@cache
def channels_last_plan(channels: int, area: int, itemsize: int, plan: Plan
                       ) -> tuple[int, int, int, int]:
    """Return a program's channels, its pixels at a time and in all, and an image's chunks.

    A chunk is the pixels of one program.
    """
    columns = min(plan.columns, _power_of_two(channels))
    rows = plan.warps * 32 * 16 // itemsize // columns
    chunk = min(max(SMALLEST_CHUNK, _power_of_two(area // 32 + 1) // 2), CHUNK)
    chunk = max(rows, chunk)
    return columns, rows, chunk, -(-area // chunk)


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least ``number``."""
    return 1 << (number - 1).bit_length()


def _in_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Return ``x`` with the pixels of a plane, or the channels of a pixel, side by side."""
    if x.is_contiguous(memory_format=layout):
        return x
    h, w = x.shape[2:]
    rows = w == 1 or x.stride(3) == 1
    columns = h == 1 or x.stride(2) == w
    if layout == torch.contiguous_format and rows and columns:
        return x
    return x.contiguous(memory_format=layout)
