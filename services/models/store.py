"""The model volume: models appear whole or not at all.

A model is a folder `<root>/<name>`. What is being made lies in `<root>/.staging/<execution>/model` on the same volume and
gets its name by one rename, after everything is on the disk. `<root>/incoming` is where people put files.

An execution is named `<job>.<run>`. A run takes over what a killed run of its job has left, which the kernel's lock on the
staging folder tells from one that still works there.
"""

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

from services.errors import InvalidName, ModelExists, ModelNotFound, NotReady, SourceNotFound
from services.kinds.model_summary import ModelSummary
from services.models.summary import describe_folder
from services.names import NAME_RULE, is_model_name

INCOMING, RESULTS, STAGING, TRASH = "incoming", "results", ".staging", ".trash"
STAGED_MODEL = "model"
LINES, PREDICTIONS = ".jsonl", ".predictions.json"
"""What follows a job's id in the names of the files that it leaves under `results/`."""


def _no_confirmation() -> None:
    """For callers whose execution cannot be superseded."""


class ModelStore:
    """The volume under `root`; holds no state of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ---- looking ----

    def names(self) -> list[str]:
        """The models' names in alphabetical order."""
        with self._readable():
            entries = [entry.name for entry in os.scandir(self.root) if entry.is_dir()]
        return sorted(name for name in entries if is_model_name(name))

    def exists(self, name: str) -> bool:
        """Whether a model has this name in whatever letter case (volumes may not tell cases apart)."""
        return name.lower() in {other.lower() for other in self.names()}

    def path(self, name: str) -> Path:
        """The folder of a model.

        Raises:
            InvalidName, ModelNotFound
        """
        self._check_name(name)
        folder = self.root / name
        if not folder.is_dir() or name not in self.names():
            known = ", ".join(self.names()[:20]) or "none"
            raise ModelNotFound(
                f"no model is named {name!r}; there are: {known}", "Check the name, or import it first."
            )
        return folder

    def describe(self, name: str) -> ModelSummary:
        """What a model is, from its files' headers."""
        return describe_folder(self.path(name), name)

    def models(self) -> list[ModelSummary]:
        """Every model of the shelf."""
        return [describe_folder(self.root / name, name) for name in self.names()]

    def free_bytes(self) -> int:
        """Room on the volume for this process."""
        with self._readable():
            stats = os.statvfs(self.root)
        return stats.f_bavail * stats.f_frsize

    def check(self) -> None:
        """Whether the volume is there and can be written.

        Raises:
            NotReady: it is not; the message says why.
        """
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise NotReady(
                f"the model volume {self.root} cannot be written ({error.strerror})",
                "Check the mount and its owner.",
            ) from error

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise NotReady(
                f"the model volume {self.root} cannot be read ({error.strerror})",
                "Check the mount and its owner.",
            ) from error

    def incoming(self, relative: str) -> Path:
        """A file or folder that people put on the volume, named by its path `incoming/…`.

        Raises:
            InvalidName: the path leaves `incoming/`.
            SourceNotFound: nothing is there.
        """
        base = (self.root / INCOMING).resolve()
        try:
            path = (self.root / relative).resolve()
            there = path.exists()
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL, a loop of links
            raise InvalidName(
                f"{relative!r} cannot be a path ({error})", f'Give it like "{INCOMING}/llama".'
            ) from error
        if Path(relative).is_absolute() or not path.is_relative_to(base) or path == base:
            raise InvalidName(
                f"{relative!r} is not a path below {INCOMING}/ on the volume",
                f'Give it like "{INCOMING}/llama".',
            )
        if not there:
            names = ", ".join(sorted(entry.name for entry in base.iterdir())[:20]) if base.is_dir() else ""
            raise SourceNotFound(
                f"{relative!r} is not on the volume; {INCOMING}/ holds: {names or 'nothing'}",
                f"Put the files into {INCOMING}/ on the model volume first.",
            )
        return path

    @staticmethod
    def _check_name(name: str) -> None:
        if not is_model_name(name):
            raise InvalidName(
                f"{name!r} cannot name a model",
                NAME_RULE,
            )

    def result(self, name: str) -> Path:
        """Where a file that a job writes for people lies, or will lie: `results/<name>`."""
        return self.root / RESULTS / name

    # ---- changing ----

    @contextmanager
    def replacing_result(self, name: str, *, execution: str, confirm: Callable[[], None]) -> Iterator[FileIO]:
        """A new file, readable by all, that becomes `results/<name>` when the block ends well.

        Whoever keeps it open afterwards writes into the file of that name as long as no other replaces it.

        Args:
            execution: names the staging folder.
            confirm: called last, before the rename; raises if this execution may not publish any more.
        """
        staging = self.root / STAGING / execution
        staging.mkdir(parents=True, exist_ok=True)
        target = self.result(name)
        try:
            with ExitStack() as opened:
                file = opened.enter_context((staging / name).open("w+b", buffering=0))
                os.fchmod(file.fileno(), 0o644)
                yield file
                with suppress(OSError):  # some file systems refuse fsync
                    os.fsync(file.fileno())
                _make_readable(target.parent)
                confirm()
                (staging / name).rename(target)
                opened.pop_all()
            _sync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    @contextmanager
    def publishing(
        self,
        name: str,
        *,
        execution: str,
        confirm: Callable[[], None] = _no_confirmation,
        take_over: bool = False,
    ) -> Iterator[Path]:
        """A staging folder that becomes the model `name` when the block ends well, and vanishes when it does not.

        Args:
            execution: `<job>.<run>`; names the staging folder, so that two executions of a job never work in the same one.
            confirm: called last, before the rename; raises if this execution may not publish any more.
            take_over: the folder may hold what a killed execution of the same job has left, beside the journal of it.

        Raises:
            InvalidName, ModelExists; whatever the block or `confirm` raises.
        """
        self._check_new(name)
        place = self.root / STAGING / execution
        with self._staged(place, take_over=take_over):
            staging = place / STAGED_MODEL
            staging.mkdir(exist_ok=True)
            yield staging
            _settle(staging)
            self._check_new(name)
            confirm()
            self._rename(staging, name)
            _sync(self.root)

    @contextmanager
    def _staged(self, place: Path, *, take_over: bool) -> Iterator[None]:
        """The place exists and is locked within, and is gone afterwards."""
        job, _, _ = place.name.partition(".")
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        with ExitStack() as locks:
            left = [path for path in self._leftovers(STAGING) if path.name.startswith(f"{job}.")]
            free = [path for path in left if locks.enter_context(_lock(path))]
            kept = free.pop().rename(place) if free and take_over else None
            for other in free:
                shutil.rmtree(other, ignore_errors=True)
            if kept is None:
                place.mkdir()
                locks.enter_context(_lock(place))
            try:
                yield
            finally:
                shutil.rmtree(place, ignore_errors=True)

    def staged_bytes(self, job: str) -> int:
        """Room that a job's executions take in staging, as the file system counts it."""
        places = [path for path in self._leftovers(STAGING) if path.name.startswith(f"{job}.")]
        return sum(
            file.stat().st_blocks * 512 for place in places for file in place.rglob("*") if file.is_file()
        )

    def _rename(self, staging: Path, name: str) -> None:
        try:
            staging.rename(self.root / name)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                self._check_new(name)  # somebody was faster
            raise

    def _check_new(self, name: str) -> None:
        self._check_name(name)
        if self.exists(name):
            raise ModelExists(
                f"a model named {name!r} is there already (letter case does not count)",
                "Choose another target, or delete that model first.",
            )

    def delete(self, name: str) -> None:
        """Removes a model: by one rename, then file by file.

        Raises:
            InvalidName, ModelNotFound
        """
        folder = self.path(name)
        trash = self.root / TRASH / uuid.uuid4().hex
        trash.parent.mkdir(exist_ok=True)
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def sweep(self, is_alive: Callable[[str], bool]) -> list[str]:
        """Removes the staging folders of executions that are not needed any more, and emptied trash; returns their names."""
        gone = []
        for folder in self._leftovers(STAGING):
            if not is_alive(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
                gone.append(folder.name)
        for folder in self._leftovers(TRASH):
            shutil.rmtree(folder, ignore_errors=True)
        return gone

    def _leftovers(self, place: str) -> list[Path]:
        folder = self.root / place
        return sorted(folder.iterdir()) if folder.is_dir() else []


def journal_of(staging: Path) -> Path:
    """Where the journal of what is written into a staging folder lies: beside it, and gone with it."""
    return staging.parent / "journal"


@contextmanager
def _lock(place: Path) -> Iterator[bool]:
    """Whether no other process works in a staging place; this one has it to itself within.

    The kernel gives the lock up when a process dies, however it dies. Where a file system has no locks nothing is taken over.
    """
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except OSError:
        locked = False
    try:
        yield locked
    finally:
        os.close(descriptor)


def _make_readable(folder: Path) -> None:
    """Make a folder that all may read, whatever the umask; one that is there already stays as it is."""
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o755)


def _settle(folder: Path) -> None:
    """Everything on the disk and readable by all: files 0644, folders 0755."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o755 if path.is_dir() else 0o644)
        _sync(path)
    folder.chmod(0o755)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems refuse fsync on folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
