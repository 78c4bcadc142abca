"""The shuffle attention operator beside its formula and beside copies, its floors."""
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops import shuffle_attention
from .measure import median_times, peak_memory

GROUPS = 64
# (channels, stride, blocks) of the stages of ResNet-50: the attention's input in an image's pixels
STAGES = ((256, 4, 3), (512, 8, 4), (1024, 16, 6), (2048, 32, 3))

FORWARD, BACKWARD = 'forward', 'forward + backward'
FLOORS = {FORWARD: 'clone', BACKWARD: 'clone + add'}
# tensors of x's size that the floor reads and writes
TRAFFIC = {FORWARD: 2, BACKWARD: 5}


@dataclass(frozen=True)
class OperatorCase:
    """What is measured: the attention of ResNet-50 on a batch of images.

    Attributes:
        batch, height, width: of the images.
        dtype, device, channels_last: of the operator's input.
        implementation: forces one, None takes the best for the input.
        compiled: also measure ``torch.compile`` of the formula, which takes minutes to compile.
        repeats: rounds of which medians are taken.
    """

    batch: int = 1
    height: int = 800
    width: int = 1344
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device('cpu'))
    channels_last: bool = False
    implementation: str | None = None
    compiled: bool = True
    repeats: int = 15


def measure_operator(case: OperatorCase) -> Iterator[dict]:
    """Measure the four stages, one after another, then add up ResNet-50's 16 blocks.

    Yields:
        A dict for each stage, pass and contestant: 'stage' (1 to 4, or 'ResNet-50', the sum over
        the blocks), 'shape', 'pass' ('forward' or 'forward + backward'), 'name', 'milliseconds',
        'peak_bytes' (None for the sum) and 'bytes' (that the floor moves). The floors are 'clone'
        and 'clone + add': as many reads and writes as the passes need.
    """
    total = {}
    for stage, (channels, stride, blocks) in enumerate(STAGES, start=1):
        shape = (case.batch, channels, case.height // stride, case.width // stride)
        for pass_ in FLOORS:
            calls = _calls(case, shape, pass_)
            times = median_times(calls, case.device, case.repeats)
            moved = TRAFFIC[pass_] * torch.Size(shape).numel() * case.dtype.itemsize
            for name, milliseconds in times.items():
                yield dict(stage=stage, shape=shape, **{'pass': pass_}, name=name,
                           milliseconds=milliseconds, bytes=moved,
                           peak_bytes=peak_memory(calls[name], case.device))
                sums = total.setdefault((pass_, name), dict(milliseconds=0., bytes=0))
                sums['milliseconds'] += blocks * milliseconds
                sums['bytes'] += blocks * moved
    for (pass_, name), sums in total.items():
        yield dict(stage='ResNet-50', shape=None, **{'pass': pass_}, name=name, peak_bytes=None,
                   **sums)


def _calls(case: OperatorCase, shape: tuple[int, ...], pass_: str) -> dict:
    """The contestants, the floor first, by name."""
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(case.device)

    x, dy = (random(*shape).to(case.dtype, memory_format=layout) for _ in range(2))
    p = shape[1] // (2 * GROUPS)
    parameters = [*(random(1, p, 1, 1) for _ in range(4)), *(random(p) for _ in range(2))]

    def attend(*tensors: Tensor, implementation: str | None = case.implementation) -> Tensor:
        return shuffle_attention(*tensors, GROUPS, implementation=implementation)

    def formula(*tensors: Tensor) -> Tensor:
        return attend(*tensors, implementation='reference')

    contestants = {'operator': attend, 'formula': formula}
    if case.compiled:
        from ..ops.shuffle_attention import shuffle_attention_reference
        compiled = torch.compile(shuffle_attention_reference, dynamic=False)
        contestants['compiled formula'] = lambda *tensors: compiled(*tensors, GROUPS)

    if pass_ == FORWARD:
        return {'clone': x.clone,
                **{name: _forward(f, x, parameters) for name, f in contestants.items()}}
    leaves = [tensor.requires_grad_() for tensor in (x.clone(), *parameters)]
    return {'clone + add': lambda: (x.clone(), torch.add(x, dy)),
            **{name: _backward(f, leaves, dy) for name, f in contestants.items()}}


def _forward(f, x: Tensor, parameters: list[Tensor]):
    def call():
        with torch.no_grad():
            return f(x, *parameters)
    return call


def _backward(f, leaves: list[Tensor], dy: Tensor):
    def call():
        y = f(*leaves)
        return y, torch.autograd.grad(y, leaves, dy)
    return call
