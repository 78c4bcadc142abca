"""Child processes that print to the terminal and to a log, and end with their parent."""
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .runs import ReproduceError

PR_SET_PDEATHSIG = 1
LAST_LINES = 30


@contextmanager
def locked(work_dir: Path) -> Iterator[int]:
    """Lock the work dir for this process and the children that inherit the lock's descriptor.

    Raises:
        ReproduceError: Another process holds the lock.
    """
    with (work_dir / '.lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReproduceError(f'{work_dir} is in use by another reproduce.py, or by a training '
                                 'that it started: wait for it, or stop it') from None
        yield file.fileno()


def run_child(command: list[str], log: Path, lock: int, cwd: Path,
              environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run a command, and copy its output to the terminal and to the end of a log.

    Returns:
        Its exit status, and the last lines of its output.

    Raises:
        KeyboardInterrupt: This process was interrupted. The child has ended by then.
    """
    last = deque(maxlen=LAST_LINES)
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
        cwd=cwd, env=os.environ | environment, pass_fds=[lock], preexec_fn=_end_with_parent)
    try:
        with log.open('a') as file:
            for line in child.stdout:
                sys.stdout.write(line)
                sys.stdout.flush()
                file.write(line)
                last.append(line.rstrip())
        return child.wait(), list(last)
    finally:
        _end(child)


def _end(child: subprocess.Popen, patience: float = 20) -> None:
    for stop in (child.terminate, child.kill):
        if child.poll() is None:
            stop()
            try:
                child.wait(patience)
            except subprocess.TimeoutExpired:
                continue


def _end_with_parent() -> None:
    """On Linux, have the kernel end this process when its parent is killed."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
