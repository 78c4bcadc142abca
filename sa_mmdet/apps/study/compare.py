"""Differences seed by seed, their means and 95 % intervals."""
import math
import statistics
from dataclasses import dataclass

from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with its Student's t interval at ``LEVEL``.

    Attributes:
        mean: mean over the seeds.
        margin: half the width of the interval; None for a single seed.
        by_seed: the difference for each seed.
    """

    mean: float
    margin: float | None
    by_seed: dict[int, float]

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.margin is not None and abs(self.mean) > self.margin


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> Difference | None:
    """Compare two methods seed by seed; return None if no seed is in both.

    Args:
        values, baseline: a metric by seed.
    """
    by_seed = {seed: value - baseline[seed] for seed, value in values.items() if seed in baseline}
    if not by_seed:
        return None
    count, margin = len(by_seed), None
    if count > 1:
        error = statistics.stdev(by_seed.values()) / math.sqrt(count)
        margin = float(student.ppf((1 + LEVEL) / 2, count - 1) * error)
    return Difference(statistics.fmean(by_seed.values()), margin, by_seed)
