"""What the tables are measured on: ImageNet (Tables 1 and 2) and COCO (Tables 3 and 4)."""
from ..tables import Row
from .base import SPLITS, Benchmark
from .coco import Coco
from .imagenet import ImageNet

__all__ = ['BENCHMARKS', 'SPLITS', 'Benchmark', 'Coco', 'ImageNet', 'benchmark_of']

BENCHMARKS: dict[str, Benchmark] = {each.name: each for each in (ImageNet(), Coco())}


def benchmark_of(of: Row | dict) -> Benchmark:
    """That of a row of the tables, or of a run's result."""
    if isinstance(of, Row):
        return BENCHMARKS[of.dataset]
    return next(benchmark for benchmark in BENCHMARKS.values()
                if set(of['metrics']) <= set(benchmark.bytes_of_predictions))
