"""Means over seeds, and differences seed by seed with their 95 % intervals."""
import math
import statistics
from dataclasses import dataclass

from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with the interval of Student's t at ``LEVEL``.

    Attributes:
        mean: over the seeds.
        margin: half the width of the interval; None for one seed, which has none.
        seeds: number of pairs.
    """

    mean: float
    margin: float | None
    seeds: int

    @property
    def exceeds_interval(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.margin is not None and abs(self.mean) > self.margin


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> Difference | None:
    """Compare two methods seed by seed; None where no seed is in both.

    Args:
        values, baseline: a metric by seed.
    """
    differences = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
    if not differences:
        return None
    count, margin = len(differences), None
    if count > 1:
        error = statistics.stdev(differences) / math.sqrt(count)
        margin = float(student.ppf((1 + LEVEL) / 2, count - 1) * error)
    return Difference(statistics.fmean(differences), margin, count)
