"""What the Triton kernels compile to, for GPUs that need not be present."""
import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from ...ops import triton_launch
from .operator import GROUPS, OperatorCase, stage_shapes

CAPABILITIES = (80, 90, 100)
# what fits on a multiprocessor of these GPUs; shared memory is never the limit
REGISTERS, WARPS, PROGRAMS = 65536, 64, 32
INSTRUCTION = re.compile(r'/\*([0-9a-f]{4,})\*/\s+([^;]+?)\s*;')
BACK = re.compile(r'\bBRA\b.* 0x([0-9a-f]+)$')
ACCESS = re.compile(r'\b(LDG|LDGSTS|STG)\.E\S*')
MERGING = ('statistics_kernel', 'gradient_sums_kernel', 'add_up_kernel')
WIDTHS = {'.U8': 1, '.S8': 1, '.U16': 2, '.S16': 2, '.64': 8, '.128': 16, '.256': 32}


@dataclass
class Launch:
    """A compiled kernel and its launch arguments: numbers, and the dtypes of tensors."""

    kernel: str
    programs: int
    warps: int
    binary: bytes
    arguments: list


class Code(NamedTuple):
    """A kernel's machine code, with the registers and stack bytes of a thread."""

    registers: int
    stack: int
    instructions: list[tuple[int, str]]


@dataclass
class Driver:
    """A stand-in for Triton's GPU driver that records launches and launches nothing."""

    capability: int
    launches: list[Launch] = field(default_factory=list)

    @property
    def utils(self) -> 'Driver':
        return self

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget('cuda', self.capability, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return dict(max_shared_mem=232448)

    def load_binary(self, name: str, binary: bytes, *_) -> tuple:
        return 1, binary, 0, 0, 1024  # module, function, registers, spills, threads

    def launcher_cls(self, source, metadata) -> Callable[..., None]:
        """Return the function that launches a compiled kernel."""
        def launch(x: int, y: int, z: int, stream: int, binary: bytes, *others) -> None:
            self.launches.append(Launch(
                source.fn.__name__, x * y * z, metadata.num_warps, binary,
                [getattr(argument, 'dtype', argument)
                 for argument in others[-len(source.fn.arg_names):]]))
        return launch


@cache
def driver_of(capability: int) -> Driver:
    """Return the driver of a GPU; Triton caches what it compiles for it."""
    return Driver(capability)


def launches(capability: int, call: Callable[[], object]) -> list[Launch]:
    """Return what a call launches on a GPU of this compute capability.

    Tensors may be on the meta device. Triton's driver stays replaced afterwards.
    """
    driver = driver_of(capability)
    driver.launches = []
    triton_launch._compiled.clear()
    triton.runtime.driver.set_active(driver)
    call()
    return driver.launches


def compile_operator(case: OperatorCase, capabilities: tuple[int, ...] = CAPABILITIES
                     ) -> Iterator[dict]:
    """Compile the kernels of a case for the four stages and both passes, without a GPU.

    Yields:
        A dict for each kernel: 'stage', 'shape', 'pass', 'kernel', 'capability' (90 is 9.0);
        'programs' and 'warps' (per program); 'registers' and 'spilled_bytes' (per thread);
        'resident_warps', which fit on a multiprocessor; 'access_bytes', which a thread mostly reads
        or writes at a time; and 'instructions' per element of the tensor, including those of
        threads without elements. 'instructions' is None for kernels that merge the results of
        programs.
    """
    for capability in capabilities:
        for stage, shape in enumerate(stage_shapes(case), start=1):
            for pass_, call in _passes(case, shape).items():
                for launch in launches(capability, call):
                    yield dict(stage=stage, shape=shape, **{'pass': pass_}, capability=capability,
                               **_describe(launch, math.prod(shape), case.dtype))


def _passes(case: OperatorCase, shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Return the passes of the Triton implementation, by name."""
    z = torch.empty(shape, dtype=case.dtype, device='meta', memory_format=case.layout)
    parameters = (torch.empty(shape[1] // (2 * GROUPS), device='meta'), ) * 6
    batch_norm = (torch.empty(shape[1], device='meta'), ) * 4 if case.bottleneck else None
    other = z if case.bottleneck else None
    stats = torch.empty(*shape[:2], 2, dtype=torch.float64, device='meta')
    settings = batch_norm, parameters, GROUPS, 1e-5, 1e-5
    return {'forward': lambda: triton_launch.forward(z, other, *settings),
            'backward': lambda: triton_launch.backward(z, z, other, stats, *settings, True)}


def _describe(launch: Launch, elements: int, dtype: torch.dtype) -> dict:
    code = disassemble(launch.binary)
    return dict(
        kernel=launch.kernel, programs=launch.programs, warps=launch.warps,
        registers=code.registers, spilled_bytes=code.stack,
        resident_warps=resident_warps(launch.warps, code.registers),
        instructions=instructions(launch, code, elements, dtype.itemsize),
        access_bytes=access_bytes(code))


def disassemble(binary: bytes) -> Code:
    """Return the machine code of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary)
        file.flush()
        text = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, '-res-usage', '-sass', file.name], check=True,
            capture_output=True, text=True).stdout
    registers, stack = map(int, re.search(r'REG:(\d+) STACK:(\d+)', text).groups())
    return Code(registers, stack, [(int(address, 16), instruction)
                                   for address, instruction in INSTRUCTION.findall(text)])


def resident_warps(warps: int, registers: int) -> int:
    """Return how many warps fit on a multiprocessor, in programs of ``warps`` warps each."""
    of_warp = -(-registers // 8) * 8 * 32  # registers are allocated in blocks of 256
    return warps * min(REGISTERS // of_warp // warps, WARPS // warps, PROGRAMS)


def loops(code: Code) -> list[list[str]]:
    """Return the instructions of each loop."""
    places = {address: place for place, (address, _) in enumerate(code.instructions)}
    found = []
    for place, (_, text) in enumerate(code.instructions):
        back = BACK.search(text)
        start = places[int(back[1], 16)] if back else place
        if start < place:  # not the branch to itself after the end
            found.append([text for _, text in code.instructions[start:place + 1]])
    return found


def instructions(launch: Launch, code: Code, elements: int, itemsize: int) -> float | None:
    """Return the instructions that a thread executes per element.

    A loop counts as often as a program's elements require. Code outside loops counts once, even if
    it is skipped. Return None for a kernel that doesn't loop over the elements.
    """
    if launch.kernel in MERGING:
        return None
    of_thread = elements / launch.programs / (32 * launch.warps)
    return (len(code.instructions) + sum(
        len(body) * (of_thread / _elements(body, itemsize) - 1) for body in loops(code))
    ) / of_thread


def access_bytes(code: Code) -> int:
    """Return the access size, in bytes, that moves most data, in loops if there are any."""
    moved = Counter()
    for text in chain(*(loops(code) or [[text for _, text in code.instructions]])):
        moved[_bytes(text)] += _bytes(text)
    return max(moved, key=moved.get)


def _elements(body: list[str], itemsize: int) -> float:
    """Return the elements per thread in a loop, which has one exponential or read for each."""
    return (sum('MUFU.EX2' in text for text in body)
            or sum(_bytes(text) for text in body if 'LDG' in text) / itemsize)


def _bytes(text: str) -> int:
    """Return the bytes that an instruction reads or writes in global memory, per thread."""
    access = ACCESS.search(text)
    if not access:
        return 0
    return next((width for name, width in WIDTHS.items() if name in access[0]), 4)
