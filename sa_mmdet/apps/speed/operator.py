"""The operator, alone or in a bottleneck, compared with its formula and with copies as floors."""
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import fused_bn_sa_add_relu, shuffle_attention, triton_launch
from .measure import Call, Case, graph_times, host_microseconds, median_times, peak_memory

GROUPS = 64
# (channels, stride, blocks) of ResNet-50's stages; the stride is that of the attention's input
STAGES = ((256, 4, 3), (512, 8, 4), (1024, 16, 6), (2048, 32, 3))

FORWARD, BACKWARD = 'forward', 'forward + backward'
# for the attention (False) and for everything after conv3 in a bottleneck (True): the floor, and
# how many tensors of x's size it moves
FLOORS = {False: {FORWARD: ('clone', 2), BACKWARD: ('clone + add', 5)},
          True: {FORWARD: ('add', 3), BACKWARD: ('add + clone + add', 8)}}

# what a sweep changes in a ``Plan`` of the Triton kernels, by whether the layout is channels_last
PLANS = {False: [dict(elements_a_warp=elements) for elements in (256, 512, 1024)],
         True: [dict(columns=columns, warps=warps) for columns in (32, 64, 128)
                for warps in (2, 4, 8) if columns <= 16 * warps]}  # with fewer, moments spill

# A CUDA graph should move GRAPH_BYTES, which takes about a millisecond and as much memory, in at
# most GRAPH_CALLS calls. It makes more, up to MAX_SETS, only to leave nothing in the cache.
GRAPH_BYTES, GRAPH_CALLS, MAX_SETS = 3 * 10**9, 256, 1024


@dataclass(frozen=True, kw_only=True)
class OperatorCase(Case):
    """What to measure: the attention of ResNet-50 on a batch of images.

    Attributes:
        implementation: implementation of the operator; None takes the best for the input.
        compiled: also measure ``torch.compile`` of the formula, which takes minutes to compile.
        bottleneck: measure ``fused_bn_sa_add_relu`` instead of ``shuffle_attention``, and also what
            plain ResNet has there.
        sweep: only measure the Triton operator with each of ``PLANS``.
    """

    implementation: str | None = None
    compiled: bool = True
    bottleneck: bool = False
    sweep: bool = False


def measure_operator(case: OperatorCase) -> Iterator[dict]:
    """Measure the four stages, one after another, then add up ResNet-50's 16 blocks.

    On CUDA, times are of kernels in a CUDA graph, on inputs that are not in the cache.

    Yields:
        A dict for each stage, pass and variant, the floor first: 'stage' (1 to 4, or
        'ResNet-50', the sum over the blocks), 'shape', 'pass' ('forward' or 'forward + backward'),
        'name', 'milliseconds', 'host_microseconds' (until a call has launched its kernels; None on
        the CPU and for the sum), 'peak_bytes' (None for the sum) and 'bytes' (which the floor
        moves). The floors in ``FLOORS`` are copies with as many reads and writes as the passes
        need.
    """
    total = {}
    for stage, ((_, _, blocks), shape) in enumerate(
            zip(STAGES, stage_shapes(case), strict=True), start=1):
        for pass_ in (FORWARD, BACKWARD):
            for row in _measure_pass(case, shape, pass_):
                yield dict(stage=stage, shape=shape, **{'pass': pass_}, **row)
                sums = total.setdefault((pass_, row['name']), dict(milliseconds=0., bytes=0))
                for key in sums:
                    sums[key] += blocks * row[key]
    for (pass_, name), sums in total.items():
        yield dict(stage='ResNet-50', shape=None, **{'pass': pass_}, name=name, peak_bytes=None,
                   host_microseconds=None, **sums)


def stage_shapes(case: OperatorCase) -> list[tuple[int, int, int, int]]:
    """Return the shapes of the operator's input at the stages."""
    return [(case.batch, channels, case.height // stride, case.width // stride)
            for channels, stride, _ in STAGES]


def input_sets(moved: int, cache: int) -> int:
    """Return how many sets of inputs a CUDA graph goes through.

    Args:
        moved: bytes that a call reads and writes.
        cache: bytes of the GPU's L2 cache. All sets together move four times as many, if MAX_SETS
            allows it.

    Returns:
        2 to ``MAX_SETS``.
    """
    sets = max(4 * cache / moved, min(GRAPH_BYTES / moved, GRAPH_CALLS))
    return min(max(2, math.ceil(sets)), MAX_SETS)


def _measure_pass(case: OperatorCase, shape: tuple[int, ...], pass_: str) -> list[dict]:
    moved = FLOORS[case.bottleneck][pass_][1] * math.prod(shape) * case.dtype.itemsize
    if case.device.type == 'cuda':
        cache = torch.cuda.get_device_properties(case.device).L2_cache_size
        sets = _calls(case, shape, pass_, input_sets(moved, cache))
        times = graph_times(sets, case.device, case.repeats)
    else:
        sets = _calls(case, shape, pass_, 1)
        times = median_times(sets[0], case.device, case.repeats)
    return [dict(name=name, milliseconds=times[name], bytes=moved,
                 host_microseconds=host_microseconds(call, case.device, case.repeats),
                 peak_bytes=peak_memory(call, case.device))
            for name, call in sets[0].items()]


def _calls(case: OperatorCase, shape: tuple[int, ...], pass_: str,
           sets: int) -> list[dict[str, Call]]:
    """Return the variants by name, the floor first, for each of several sets of inputs."""
    generator = torch.Generator(case.device).manual_seed(0)
    variants = _variants(case)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=case.device)

    def feature_map() -> Tensor:
        return random(*shape).to(case.dtype, memory_format=case.layout)

    def calls() -> dict[str, Call]:
        p = shape[1] // (2 * GROUPS)
        inputs = leaves = [feature_map(), *(random(1, p, 1, 1) for _ in range(4)),
                           *(random(p) for _ in range(2))]
        if case.bottleneck:
            dtype = torch.promote_types(case.dtype, torch.float32)
            weight, bias, mean, deviation = (random(shape[1]).to(dtype) for _ in range(4))
            x, *parameters = inputs
            leaves = [x, feature_map(), weight, bias, *parameters]
            inputs = [*leaves[:4], mean, deviation.square() + 0.5, *parameters]
        floor = FLOORS[case.bottleneck][pass_][0]
        if pass_ == FORWARD:
            return {floor: _floor(case, inputs),
                    **{name: _forward(f, inputs) for name, f in variants.items()}}
        dy = feature_map()
        for leaf in leaves:
            leaf.requires_grad_()
        return {floor: _floor(case, inputs, dy),
                **{name: _backward(f, inputs, leaves, dy) for name, f in variants.items()}}

    def swept() -> dict[str, Call]:
        of_set = calls()
        of_set.update({', '.join(f'{key} {value}' for key, value in plan.items()): _planned(
            of_set['operator'], case, pass_, plan) for plan in PLANS[case.channels_last]})
        return of_set

    return [(swept if case.sweep else calls)() for _ in range(sets)]


def _planned(call: Call, case: OperatorCase, pass_: str, changes: dict[str, int]) -> Call:
    """Return the call with another plan for its last pass."""
    plans = triton_launch.FORWARD if pass_ == FORWARD else triton_launch.BACKWARD

    def with_plan():
        plan = plans[case.dtype.itemsize]
        plans[case.dtype.itemsize] = plan._replace(**changes)
        try:
            return call()
        finally:
            plans[case.dtype.itemsize] = plan
    return with_plan


def _variants(case: OperatorCase) -> dict[str, Callable[..., Tensor]]:
    """Return functions of x (or of z, identity and batch norm) and of the parameters."""

    def shuffle(x: Tensor, *others: Tensor,
                implementation: str | None = case.implementation) -> Tensor:
        if not case.bottleneck:
            return shuffle_attention(x, *others, GROUPS, implementation=implementation)
        return fused_bn_sa_add_relu(x, others[0], others[1:5], *others[5:], GROUPS,
                                    implementation=implementation)

    if case.sweep:
        return {'operator': shuffle}
    variants = {'operator': shuffle,
                'formula': functools.partial(shuffle, implementation='reference')}
    if case.compiled:
        from ...ops.reference import shuffle_attention_reference

        def formula(x: Tensor, *others: Tensor) -> Tensor:
            if not case.bottleneck:
                return shuffle_attention_reference(x, *others, GROUPS)
            y = shuffle_attention_reference(_batch_norm(x, *others[1:5]), *others[5:], GROUPS)
            return F.relu(y + others[0])

        variants['compiled formula'] = torch.compile(formula, dynamic=False)
    if case.bottleneck:
        variants['without attention'] = _without_attention
    return variants


def _batch_norm(z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(z, mean, variance, weight, bias)


def _without_attention(z: Tensor, identity: Tensor, *others: Tensor) -> Tensor:
    """Compute what mmdet's bottleneck does after conv3, in place where it does."""
    out = _batch_norm(z, *others[:4])
    out += identity
    return out.relu_()


def _floor(case: OperatorCase, inputs: list[Tensor], dy: Tensor | None = None) -> Call:
    x, identity = (tensor.detach() for tensor in inputs[:2])
    if not case.bottleneck:
        return x.clone if dy is None else lambda: (x.clone(), torch.add(x, dy))
    if dy is None:
        return lambda: torch.add(x, identity)
    return lambda: (torch.add(x, identity), x.clone(), torch.add(x, dy))


def _forward(f: Callable[..., Tensor], inputs: list[Tensor]) -> Call:
    def call():
        with torch.no_grad():
            return f(*inputs)
    return call


def _backward(f: Callable[..., Tensor], inputs: list[Tensor], leaves: list[Tensor],
              dy: Tensor) -> Call:
    def call():
        y = f(*inputs)
        return y, torch.autograd.grad(y, leaves, dy, allow_unused=True)  # without attention
    return call
