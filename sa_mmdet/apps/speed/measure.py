"""Time and memory of calls that compete in the same minutes, on CPU or CUDA."""
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

# The allocator goes on asking a graph whose capture failed whether an allocation is for it.
_FAILED_GRAPHS: list[torch.cuda.CUDAGraph] = []


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all measurements have in common.

    Attributes:
        batch, height, width: of the images; height and width multiples of 32.
        dtype, device, channels_last: of what is measured.
        repeats: rounds of which medians are taken.
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
        """Of the images, or the feature maps, and the weights in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def median_times(calls: dict[str, Call], device: torch.device, repeats: int,
                 warmup: int = 3) -> dict[str, float]:
    """Milliseconds of each call: medians over the rounds of ``round_times``."""
    return {name: statistics.median(times)
            for name, times in round_times(calls, device, repeats, warmup).items()}


def round_times(calls: dict[str, Call], device: torch.device, repeats: int,
                warmup: int = 3) -> dict[str, list[float]]:
    """Milliseconds of each call in each of ``repeats`` rounds, in which each has its turn.

    Interleaved, whatever else the machine does meets all of them alike; in another order every
    round, none always finds the memory that a certain other one has just freed. On CUDA the time is
    that between two events on the stream.
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
    """Milliseconds of each call on the GPU, without the time that Python takes to launch it.

    For each name the calls of all sets, one after another, are captured in one CUDA graph, whose
    replays compete in the rounds of ``round_times``. Their results are different memory, so that
    none is still in the cache when it is written again. What cannot be captured is called instead,
    as a warning on stderr tells.

    Args:
        sets: the calls by name, for each of several sets of inputs.
        device: a CUDA device, the current one.
        repeats: rounds of which medians are taken.
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
            print(f"warning: {name}: no CUDA graph, so that Python's time counts too: "
                  f'{reason(error.__context__ or error)}', file=sys.stderr)
            _FAILED_GRAPHS.append(graph)
            pool = torch.cuda.graph_pool_handle()  # the other stays reserved for the failed one
            replays[name] = lambda calls=calls: [call() for call in calls]
    return {name: milliseconds / len(sets)
            for name, milliseconds in median_times(replays, device, repeats).items()}


def _capture(graph: torch.cuda.CUDAGraph, calls: list[Call], stream: torch.cuda.Stream,
             pool: tuple[int, int]) -> None:
    """Capture the calls, each once. Graphs of one pool share memory, and must not overlap."""
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):  # torch.cuda.graph leaves it only where the capture succeeds
        for call in 2 * calls:  # compiles kernels, which a capture must not
            call()
        with torch.cuda.graph(graph, pool, stream):
            results = [call() for call in calls]
    del results  # each has had its own memory, which the next graph may use


def host_microseconds(call: Call, device: torch.device, repeats: int,
                      calls: int = 10) -> float | None:
    """Microseconds that Python takes for a call, while the GPU works; None on the CPU.

    The median of ``repeats`` times for ``calls`` calls, whose kernels have to fit into the queue
    of some 1000 launches: in a full one Python waits for the GPU.
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
    """Time and peak memory of each call, and their ratios to those of the first.

    A round's calls ran in the same moments: the ratio of times is taken within each round, and of
    the rounds' ratios the median, which the machine's other work moves less than the times.

    Args:
        calls: what competes, by name.
        device: on which the calls run.
        repeats, warmup: rounds that count, and rounds before these.
        capture: time CUDA graphs of the calls as well, in which Python takes no part.
        peaks: the peak memory, where PyTorch does not allocate it.

    Returns:
        For each call a dict: 'name'; 'milliseconds', the median over the rounds, and
        'round_milliseconds', all of them; 'time_ratio', and 'time_ratio_quartiles', the first and
        third; 'peak_bytes' and 'memory_ratio'; 'graph_milliseconds' and 'graph_ratio', None where
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
    del result  # freeing memory is no part of the call
    return 1e3 * elapsed


def peak_memory(call: Call, device: torch.device) -> int:
    """Return the most bytes that a call holds at one time, beyond what was there before it."""
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
    """Return what a measurement was made on."""
    cuda = device.type == 'cuda'
    return dict(
        device=torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        threads=None if cuda else torch.get_num_threads(),
        capability=None if cuda else torch.backends.cpu.get_cpu_capability(),
        # what computes float32 with 10 bits of mantissa
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
