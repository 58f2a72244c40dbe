"""Keeper of a server: a process that runs a command and leaves none of its processes behind.

A server that is killed leaves its own children running, vLLM those that hold the model. The keeper inherits them (it is a
"subreaper", prctl(2)) and kills them, whether the server has ended or the keeper's parent; then it removes the folder of the
server's socket. It imports nothing but the standard library: `python keeper.py FOLDER COMMAND ARGUMENT…`, with a pipe as standard
input that its parent holds open.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
"""Options of prctl(2), from linux/prctl.h."""

GRACE_SECONDS = 5.0
"""Time that a server has to end by itself: it removes its shared memory then."""

REST_SECONDS = 1.0
"""Time that the children of an ended server have."""

POLL_SECONDS = 0.05


class Stopped(BaseException):
    """Raised by the signal handler of SIGTERM and SIGINT."""


def main(folder: str, command: list[str]) -> int:
    """Runs the command until it ends or the parent does; returns its exit status, 128 and the signal's number if one ended it."""
    try:
        return _run(command)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509  (one thread)
    )
    try:
        _wait(server)
        server.terminate()
        server.wait(GRACE_SECONDS)
    except (Stopped, subprocess.TimeoutExpired):
        server.kill()
    status = server.wait()
    _end_rest()
    return status if status >= 0 else 128 - status


def _wait(server: "subprocess.Popen[bytes]") -> None:
    """Returns when the server has ended, or the parent has closed the pipe."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), select.POLLHUP | select.POLLIN)
    pidfd = os.pidfd_open(server.pid)
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    os.close(pidfd)


def _end_rest() -> None:
    """Ends the processes that the server has left, and those that they leave."""
    deadline = time.monotonic() + REST_SECONDS
    while children := [*_children()]:
        signum = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in children:
            os.kill(pid, signum)
        time.sleep(POLL_SECONDS)
        _reap()


def _children() -> Iterator[int]:
    own = os.getpid()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _parent(entry) == own:
            yield int(entry.name)


def _parent(entry: Path) -> int | None:
    try:
        stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended
        return None
    return int(stat.rpartition(")")[2].split()[1])


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
