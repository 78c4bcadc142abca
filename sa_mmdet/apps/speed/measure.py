"""Time and memory of calls that are measured in turn, on CPU or CUDA."""
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile

from ...environment import versions
from ..validate.config import reason

Call = Callable[[], object]

# The allocator keeps asking a graph whose capture failed whether an allocation is for it.
_FAILED_GRAPHS: list[torch.cuda.CUDAGraph] = []


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all measurements have in common.

    Attributes:
        batch, height, width: size of the batch; height and width are multiples of 32.
        dtype, device, channels_last: type, device and layout of what is measured.
        repeats: number of rounds to take the median of.
    """

    batch: int = 1
    height: int = 800
    width: int = 1344
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device('cpu'))
    channels_last: bool = False
    repeats: int = 15

    @property
    def layout(self) -> torch.memory_format:
        """Memory layout of the images or feature maps, and of the weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def median_times(calls: dict[str, Call], device: torch.device, repeats: int,
                 warmup: int = 3) -> dict[str, float]:
    """Return the milliseconds of each call: the median over the rounds of ``round_times``."""
    return {name: statistics.median(times)
            for name, times in round_times(calls, device, repeats, warmup).items()}


def round_times(calls: dict[str, Call], device: torch.device, repeats: int,
                warmup: int = 3) -> dict[str, list[float]]:
    """Return the milliseconds of each call in each of ``repeats`` rounds, where calls take turns.

    Because calls are interleaved, other work on the machine affects all of them alike. Each round
    has another order, so that no call always reuses memory that the same other call just freed. On
    CUDA, the time is measured between two events on the stream.
    """
    times = {name: [] for name in calls}
    order = random.Random(0)
    for turn in range(warmup + repeats):
        for name, call in order.sample(list(calls.items()), len(calls)):
            milliseconds = _time(call, device)
            if turn >= warmup:
                times[name].append(milliseconds)
    return times


def graph_times(sets: list[dict[str, Call]], device: torch.device,
                repeats: int) -> dict[str, float]:
    """Return the milliseconds of each call on the GPU, without the time of Python's launch.

    For each name, the calls of all sets are captured one after another in one CUDA graph. The
    replays take turns as in ``round_times``. The results of the sets are in different memory, so
    that none is still in the cache when it is written again. A call that cannot be captured is
    called directly, with a warning on stderr.

    Args:
        sets: the calls by name, for each of several sets of inputs.
        device: the current CUDA device.
        repeats: number of rounds to take the median of.
    """
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
    replays = {}
    for name in sets[0]:
        calls = [of_set[name] for of_set in sets]
        graph = torch.cuda.CUDAGraph()
        try:
            _capture(graph, calls, stream, pool)
            replays[name] = graph.replay
        except Exception as error:  # whatever the calls raise
            print(f"warning: {name}: no CUDA graph, so its time includes Python's: "
                  f'{reason(error.__context__ or error)}', file=sys.stderr)
            _FAILED_GRAPHS.append(graph)
            pool = torch.cuda.graph_pool_handle()  # the other stays reserved for the failed one
            replays[name] = lambda calls=calls: [call() for call in calls]
    return {name: milliseconds / len(sets)
            for name, milliseconds in median_times(replays, device, repeats).items()}


def _capture(graph: torch.cuda.CUDAGraph, calls: list[Call], stream: torch.cuda.Stream,
             pool: tuple[int, int]) -> None:
    """Capture each call once. Graphs of one pool share memory, and must not overlap."""
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):  # torch.cuda.graph leaves it only if the capture succeeds
        for call in 2 * calls:  # compiles kernels, which must not happen in a capture
            call()
        with torch.cuda.graph(graph, pool, stream):
            results = [call() for call in calls]
    del results  # each had its own memory, which the next graph may use


def host_microseconds(call: Call, device: torch.device, repeats: int,
                      calls: int = 10) -> float | None:
    """Return the microseconds that Python takes for a call while the GPU works; None on the CPU.

    It is the median of ``repeats`` measurements of ``calls`` calls. Their kernels must fit into the
    queue of some 1000 launches: if it is full, Python waits for the GPU.
    """
    if device.type != 'cuda':
        return None
    call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize(device)
    return 1e6 * statistics.median(times) / calls


def compare(calls: dict[str, Call], device: torch.device, repeats: int, warmup: int = 3,
            capture: bool = False, peaks: dict[str, int] | None = None) -> list[dict]:
    """Return time and peak memory of each call, and their ratios to the first call's.

    The calls of a round run close together in time. The ratio of times is therefore taken within
    each round, and the median over the rounds is returned: the machine's other work affects it less
    than the times.

    Args:
        calls: the calls to compare, by name.
        device: the device that the calls run on.
        repeats, warmup: number of rounds that count, and of rounds before them.
        capture: also time CUDA graphs of the calls, which exclude Python's time.
        peaks: the peak memory, if PyTorch does not allocate it.

    Returns:
        A dict for each call: 'name'; 'milliseconds', the median over the rounds, and
        'round_milliseconds', all of them; 'time_ratio', and 'time_ratio_quartiles', the first and
        third; 'peak_bytes' and 'memory_ratio'; 'graph_milliseconds' and 'graph_ratio', None if
        nothing is captured, as on the CPU.
    """
    times = round_times(calls, device, repeats, warmup)
    peaks = peaks or {name: peak_memory(call, device) for name, call in calls.items()}
    graphs = graph_times([calls], device, repeats) if capture and device.type == 'cuda' else {}
    base = next(iter(calls))
    rows = []
    for name in calls:
        ratios = [time / of_base for time, of_base in zip(times[name], times[base], strict=True)]
        rows.append(dict(
            name=name, milliseconds=statistics.median(times[name]), round_milliseconds=times[name],
            time_ratio=statistics.median(ratios), time_ratio_quartiles=_quartiles(ratios),
            peak_bytes=peaks[name], memory_ratio=peaks[name] / peaks[base],
            graph_milliseconds=graphs.get(name),
            graph_ratio=graphs[name] / graphs[base] if graphs else None))
    return rows


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method='inclusive')
    return first, third


def _time(call: Call, device: torch.device) -> float:
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end)
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result  # freeing memory is not part of the call
    return 1e3 * elapsed


def peak_memory(call: Call, device: torch.device) -> int:
    """Return the most bytes that a call holds at one time, beyond what was allocated before."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    changes = [(event.start_ns(), event.nbytes())
               for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    held = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        peak = max(peak, held)
    return peak


def describe_machine(device: torch.device) -> dict:
    """Return the hardware and the versions of a measurement."""
    cuda = device.type == 'cuda'
    return dict(
        device=torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        threads=None if cuda else torch.get_num_threads(),
        capability=None if cuda else torch.backends.cpu.get_cpu_capability(),
        # which operations compute float32 with 10 bits of mantissa
        tf32=dict(convolutions=torch.backends.cudnn.allow_tf32,
                  matrix_products=torch.backends.cuda.matmul.allow_tf32) if cuda else None,
        versions=versions() | ({'cuda': torch.version.cuda} if cuda else {}))


def _cpu_name() -> str:
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.split(':', 1)[1].strip() for line in file
                        if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
