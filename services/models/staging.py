"""Staging: the part of the volume where models are made before they get their names.

An execution is named `<job>.<run>.<service>` and works in `<root>/.staging/<execution>`: the files of the model in `model/`, next to it
the journal of what is written. Names before version 0.2 have no service. An execution takes over what a killed execution of its job has left; the kernel's lock on
the folder tells that from one in which another execution still works.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

STAGING = ".staging"
STAGED_MODEL = "model"

ANYONES_SECONDS = 7 * 86400
"""Time after the last change at which any service may remove a folder of another."""

BLOCK_BYTES = 512
"""Unit of `st_blocks`, on every file system."""


class Staging:
    """The staging folders of a volume; holds no state of its own."""

    def __init__(self, volume: Path) -> None:
        self.root = volume / STAGING

    @contextmanager
    def folder(self, execution: str, *, take_over: bool) -> Iterator[Path]:
        """Yields the locked folder for an execution's model and removes everything of that execution afterwards.

        Args:
            take_over: the folder may hold what a killed execution of the same job has left, and its journal.
        """
        place = self.root / execution
        shutil.rmtree(place, ignore_errors=True)
        self.root.mkdir(exist_ok=True)
        with ExitStack() as locks:
            abandoned = [
                path for path in self._of_job(_job_of(execution)) if locks.enter_context(_lock(path))
            ]
            if abandoned and take_over:
                abandoned.pop().rename(place)
            else:
                place.mkdir()
                locks.enter_context(_lock(place))
            for other in abandoned:
                shutil.rmtree(other, ignore_errors=True)
            try:
                staged = place / STAGED_MODEL
                staged.mkdir(exist_ok=True)
                yield staged
            finally:
                shutil.rmtree(place, ignore_errors=True)

    def bytes_of(self, job: str) -> int:
        """Returns the bytes that a job's executions have staged, as the file system counts them.

        An execution may end at any moment: folders and files that vanish meanwhile count nothing.
        """
        return sum(_disk_bytes(place) for place in self._of_job(job))

    def sweep(self, is_alive: Callable[[str], bool], service: str = "") -> list[str]:
        """Removes the folders of executions that are not alive; returns their names.

        Args:
            is_alive: says of an execution of this service if its job may need its folder.
            service: tag of this service; folders of others are removed once nothing has changed for seven days.
        """
        gone = [place for place in self._places() if not is_alive(place.name) and _may_remove(place, service)]
        for place in gone:
            shutil.rmtree(place, ignore_errors=True)
        return [place.name for place in gone]

    def _of_job(self, job: str) -> list[Path]:
        return [place for place in self._places() if place.name.startswith(f"{job}.")]

    def _places(self) -> list[Path]:
        with suppress(FileNotFoundError):
            return sorted(self.root.iterdir())
        return []


def journal_of(staged: Path) -> Path:
    """Returns the path of the journal that belongs to an execution's model: next to it, and removed with it."""
    return staged.parent / "journal"


def _job_of(execution: str) -> str:
    return execution.partition(".")[0]


def _may_remove(place: Path, service: str) -> bool:
    owner = place.name.partition(".")[2].partition(".")[2]
    if owner == service or time.time() - _changed_at(place) > ANYONES_SECONDS:
        return True
    if owner:
        return False
    with _lock(place) as is_free:  # without a service in its name: it may belong to anyone
        return is_free


def _changed_at(place: Path) -> float:
    """Returns the time of the last change in a folder; one that vanishes has changed long ago."""
    changes = [0.0]
    for path in (place, *place.glob("*"), *place.glob("*/*")):
        with suppress(FileNotFoundError):
            changes.append(path.lstat().st_mtime)
    return max(changes)


def _disk_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # ignores folders that vanish
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).lstat().st_blocks * BLOCK_BYTES
    return total


@contextmanager
def _lock(place: Path) -> Iterator[bool]:
    """Locks a folder and yields True, or False if another process has locked it or it is gone.

    The kernel releases the lock when a process dies, however it dies. On a file system without locks nothing is taken over.
    """
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _is_locked(descriptor)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
