"""Whether the figures of finished runs are those that their saved predictions give."""
from pathlib import Path

from ...checkpoint.files import sha256
from .benchmarks import benchmark_of

TOLERANCE = 1e-6


def differs_from_log(result: dict, task: str) -> list[str]:
    """The metrics of a run that are not what its test logged, to the log's precision."""
    benchmark, logged = benchmark_of(result), result['logged']
    names = benchmark.logged(task)
    return [f'{task} {metric} is {value:.6f}, logged {logged[names[metric]]}'
            for metric, value in result['metrics'][task].items()
            if not benchmark.is_as_logged(value, logged[names[metric]])]


def check_result(result: dict, folder: Path) -> list[str]:
    """Evaluate a finished run's predictions again.

    Args:
        result: the content of its result.json.
        folder: where its files are.

    Returns:
        What is wrong, nothing if the files and every figure are as they were.
    """
    benchmark, evaluated_on = benchmark_of(result), result['evaluated_on']
    try:
        change = benchmark.change(evaluated_on)
    except (OSError, ValueError) as error:
        change = str(error)
    if change:
        return [change]
    problems = []
    for task, saved in result['predictions'].items():
        path = folder / saved['file']
        if not path.is_file():
            problems.append(f'{path} does not exist')
            continue
        if sha256(path) != saved['sha256']:
            problems.append(f'{path} was changed after it was evaluated: its SHA-256 differs')
        try:
            metrics = benchmark.evaluate(evaluated_on, path, task)
        except Exception as error:  # a changed file can be wrong in any way
            problems.append(f'{path} cannot be evaluated: {error!r}')
            continue
        problems += [f'{task} {name} is {metrics[name]:.6f}, reported {value:.6f}'
                     for name, value in result['metrics'][task].items()
                     if abs(metrics[name] - value) > TOLERANCE]
        if result['logged']:
            problems += differs_from_log(result | dict(metrics={task: metrics}), task)
    return problems
