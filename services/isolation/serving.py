"""Child side of an `IsolatedProcess`: the limits of this process, and the loop that answers its requests.

Only the standard library is imported, so that the process starts in a fraction of a second.
"""

import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from services.isolation.frames import LENGTH_BYTES, from_content, to_frame
from services.isolation.parent_death import die_with_parent

KEPT_BYTES = 192 << 20
"""Largest memory with which a process goes on to the next request: Python seldom returns what it has taken."""


def serve(handle: Callable[[Any], Any]) -> None:
    """Answers the requests of standard input on standard output, until the input ends or one has taken much memory.

    The arguments of the process are its parent's id, the limit of its memory in bytes and that of a request in seconds of
    processor time. The kernel kills the process at the latter, also in the middle of one instruction of Python.
    """
    parent, memory_bytes, cpu_seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    die_with_parent(parent)
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (content := _content(requests)) is not None:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        answers.write(_answer(handle, content))
        answers.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)
        if _resident_bytes() > KEPT_BYTES:
            break


def _resident_bytes() -> int:
    """Returns the memory that this process has in use, 0 where the kernel does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


def _content(requests: BinaryIO) -> bytes | None:
    """Returns the content of the next frame, None at the end."""
    length = requests.read(LENGTH_BYTES)
    return requests.read(int.from_bytes(length, "big")) if len(length) == LENGTH_BYTES else None


def _answer(handle: Callable[[Any], Any], content: bytes) -> bytes:
    try:
        return to_frame({"answer": handle(from_content(content))})
    except MemoryError:
        return to_frame({"exceeded": "memory"})
