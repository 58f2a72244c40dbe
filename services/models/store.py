"""The model volume: models appear whole or not at all.

A model is a folder `<root>/<name>`. What is being made lies in `<root>/.staging/<execution>` on the same volume and
gets its name by one rename, after everything is on the disk. `<root>/incoming` is where people put files.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from services.errors import InvalidName, ModelExists, ModelNotFound, NotReady, SourceNotFound
from services.models.inspect import ModelSummary, describe_folder

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
INCOMING, RESULTS, STAGING, TRASH = "incoming", "results", ".staging", ".trash"
RESERVED = (INCOMING, RESULTS)


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
        return sorted(name for name in entries if NAME.fullmatch(name) and name not in RESERVED)

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
        if not NAME.fullmatch(name) or name.lower() in RESERVED:
            raise InvalidName(
                f"{name!r} cannot name a model",
                "Names begin with a letter or digit and have up to 96 letters, digits, dots, dashes and underscores.",
            )

    # ---- changing ----

    @contextmanager
    def publishing(
        self, name: str, *, execution: str, confirm: Callable[[], None] = _no_confirmation
    ) -> Iterator[Path]:
        """A staging folder that becomes the model `name` when the block ends well, and vanishes when it does not.

        Args:
            execution: names the staging folder, so that two executions of a job never share one.
            confirm: called last, before the rename; raises if this execution may not publish any more.

        Raises:
            InvalidName, ModelExists; whatever the block or `confirm` raises.
        """
        self._check_new(name)
        staging = self.root / STAGING / execution
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            yield staging
            _settle(staging)
            self._check_new(name)
            confirm()
            self._rename(staging, name)
            _sync(self.root)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

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
        """Removes the staging folders of executions that no longer live, and emptied trash; returns their names."""
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
