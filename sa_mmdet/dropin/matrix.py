"""All families of configs by all ways of attention into them; results are kept after each."""
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock

from ..checkpoint.files import write_atomically
from ..environment import versions
from .attempt import attempt
from .changes import UNCHANGED
from .families import family_names, find_family
from .isolation import Outcome, call
from .reasons import explain, is_too_small

SIDES = (64, 384)
WORKS, CANNOT_RUN, FAILS = 'works', 'cannot run', 'fails'


class MatrixError(Exception):
    """The results of earlier runs cannot be gone on with."""


def run_matrix(names: list[str], file: Path, jobs: int, timeout: float,
               report: Callable[[dict, list[str]], None]) -> dict:
    """Try families and write each result into the file as soon as it is there.

    Args:
        names: of the families to try again; none for all of them that the file lacks, and for all
            of them if it lacks none.
        file: results as JSON, as returned. Those of other versions are discarded if all families
            are to be tried.
        jobs: families at a time.
        timeout: seconds for one attempt.
        report: told each new row, and the tracebacks of its failures.

    Returns:
        ``versions``, and ``rows`` in the families' order.

    Raises:
        MatrixError: the file is damaged, or some families of other versions are to be replaced.
    """
    results = _earlier(names, file)
    rows = {row['family']: row for row in results['rows']}
    names = names or [name for name in family_names() if name not in rows]
    lock = Lock()

    def work(name: str) -> None:
        row, tracebacks = try_family(name, timeout)
        with lock:
            rows[name] = row
            results['rows'] = [rows[name] for name in sorted(rows)]
            write_atomically(file, json.dumps(results, indent=1) + '\n')
            report(row, tracebacks)

    pool = ThreadPoolExecutor(jobs)
    try:
        for future in as_completed([pool.submit(work, name) for name in names]):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def read_results(file: Path) -> dict:
    """The results in a file; raises MatrixError where there are none."""
    try:
        results = json.loads(file.read_text())
        results['versions'], results['rows']
    except (ValueError, KeyError, TypeError) as error:
        raise MatrixError(f'{file} holds no results ({error}): remove it to try anew') from error
    return results


def try_family(name: str, timeout: float) -> tuple[dict, list[str]]:
    """The row of a family, and the tracebacks of what failed.

    The row has the ``family``, its ``config`` and ``backbone``, and ``routes``: for each way of
    attention into it the ``outcome``, ``remarks`` and, unless it works, the ``reason``. What fails
    is tried without attention too: CANNOT_RUN is the outcome where that fails for the same reason,
    FAILS where it does not.
    """
    found = call(find_family, name, timeout=timeout)
    if found.error:
        return dict(family=name, config=None, backbone=explain(found.error), routes={}), [
            found.traceback]
    family = found.value
    routes, tracebacks = {}, []

    @functools.cache
    def attempted(route: str) -> tuple[Outcome, list[str]]:
        return _attempt(family.config, route, timeout)

    for route in family.routes:
        outcome, remarks = attempted(route)
        if outcome.error is None:
            routes[route] = dict(outcome=WORKS, remarks=[*outcome.value, *remarks])
            continue
        without, _ = attempted(UNCHANGED)
        routes[route] = dict(outcome=_blame(outcome, without), remarks=remarks,
                             reason=explain(outcome.error))
        tracebacks.append(outcome.traceback or outcome.error)
    return dict(family=name, config=family.config, backbone=family.backbone,
                routes=routes), tracebacks


def _blame(outcome: Outcome, without: Outcome) -> str:
    """Whether a failure is the detector's, which stops without attention in the same way."""
    same = without.error is not None and explain(without.error) == explain(outcome.error)
    return CANNOT_RUN if same else FAILS


def _attempt(config: str, route: str, timeout: float) -> tuple[Outcome, list[str]]:
    """An attempt with small images, or with larger ones where a detector needs them."""
    for side in SIDES:
        outcome = call(attempt, config, route, side, timeout=timeout)
        if outcome.error is None or not is_too_small(outcome.error):
            break
    return outcome, [f'{side} px images'] if side != SIDES[0] else []


def _earlier(names: list[str], file: Path) -> dict:
    """The results to go on with."""
    new = dict(versions=versions(), rows=[])
    if not file.is_file():
        return new
    results = read_results(file)
    same = results['versions'] == new['versions']
    if names and not same:
        raise MatrixError(f'{file} is of {results["versions"]}, here are {new["versions"]}: try '
                          'all families, or give another --out')
    complete = {row['family'] for row in results['rows']} >= set(family_names())
    return results if names or (same and not complete) else new
