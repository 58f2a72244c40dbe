"""Memory of processes according to the kernel (proc(5), smaps_rollup)."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

SAMPLE_SECONDS = 0.02


def memory(processes: Iterable[psutil.Process]) -> tuple[int, int]:
    """Returns bytes of anonymous (allocated) and of resident memory (including mapped files), summed over processes."""
    anonymous = resident = 0
    for process in processes:
        fields = _rollup(process.pid)
        anonymous += fields.get("Anonymous", 0)
        resident += fields.get("Rss", 0)
    return anonymous, resident


def family(pid: int) -> list[psutil.Process]:
    """Returns a process and its descendants."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _rollup(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


class Peak:
    """Context manager that keeps the largest samples of a process and its children, taken every 20 ms or less often."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.anonymous = self.resident = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.is_set():
            start = time.monotonic()
            anonymous, resident = memory(family(self._pid))
            self.anonymous = max(self.anonymous, anonymous)
            self.resident = max(self.resident, resident)
            # The kernel walks all pages for a sample: a tenth of the time at most.
            self._over.wait(max(SAMPLE_SECONDS, 10 * (time.monotonic() - start)))
