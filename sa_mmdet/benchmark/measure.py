"""Time and memory of calls that compete in the same minutes, on CPU or CUDA."""
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from ..environment import versions

Call = Callable[[], object]


def median_times(calls: dict[str, Call], device: torch.device, repeats: int,
                 warmup: int = 3) -> dict[str, float]:
    """Milliseconds of each call: medians over ``repeats`` rounds in which each has its turn.

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
    return {name: statistics.median(of_call) for name, of_call in times.items()}


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
    """The most bytes that a call holds at one time, beyond what was there before it."""
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
    """What a measurement was made on."""
    cuda = device.type == 'cuda'
    return dict(
        device=torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        threads=None if cuda else torch.get_num_threads(),
        capability=None if cuda else torch.backends.cpu.get_cpu_capability(),
        versions=versions() | ({'cuda': torch.version.cuda} if cuda else {}))


def _cpu_name() -> str:
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.split(':', 1)[1].strip() for line in file
                        if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
