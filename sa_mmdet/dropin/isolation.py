"""A call in a process of its own: its crash, its hang and its memory are not the caller's."""
import math
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

# The server imports what calls need once; each call then starts by a fork of it.
_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['sa_mmdet.dropin.attempt'])


@dataclass(frozen=True)
class Outcome:
    """What a call returned, or how it failed: in a line, and its traceback if it has one."""
    value: object = None
    error: str | None = None
    traceback: str = ''


def call(function: Callable, *args, timeout: float) -> Outcome:
    """Call a function of an importable module; what it prints is lost.

    Args:
        function: its arguments and its value go through pickle.
        timeout: seconds after which the process is killed.

    Raises:
        KeyboardInterrupt: the process was interrupted.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(sender, function, args, timeout),
                               daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            return Outcome(error=f'no end within {timeout:g} s')
        outcome = receiver.recv()
    except EOFError:
        process.join()
        return Outcome(error=_death(process.exitcode))
    finally:
        process.kill()
        process.join()
        process.close()
    if outcome is None:
        raise KeyboardInterrupt
    return outcome


def _work(sender: Connection, function: Callable, args: tuple, timeout: float) -> None:
    signal.alarm(math.ceil(timeout) + 1)  # ends it where nobody is left to kill it
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        outcome = Outcome(function(*args))
    except Exception as error:
        outcome = Outcome(error=f'{type(error).__name__}: {error}',
                          traceback=traceback.format_exc())
    except KeyboardInterrupt:
        outcome = None
    sender.send(outcome)


def _death(exitcode: int) -> str:
    if exitcode >= 0:
        return f'the process ended with status {exitcode}'
    name = signal.Signals(-exitcode).name
    return f'the process was ended by {name}' + (
        ' (out of memory?)' if name == 'SIGKILL' else '')
