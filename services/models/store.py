"""The model volume: models appear whole or not at all.

A model is a folder `<root>/<name>`. It is made in a staging folder on the same volume (`staging.py`) and gets its name by one
rename, after everything is on the disk. People put files into `<root>/incoming`; jobs leave files for them in `<root>/results`.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

from services.bounded_text import listed
from services.errors import InvalidName, ModelExists, ModelNotFound, SourceNotFound
from services.kinds.model_summary import ModelSummary
from services.models.base_offer import BaseOffer, hub_ids_of_folders
from services.models.staging import Staging
from services.models.summary import describe_folder
from services.models.uploads import Uploads
from services.models.volume import Volume
from services.names import NAME_RULE, is_model_name

INCOMING, RESULTS, TRASH = "incoming", "results", ".trash"
LINES, PREDICTIONS = ".jsonl", ".predictions.json"
"""Suffixes of the files that a job leaves under `results/`, after its id."""


def _no_confirmation() -> None:
    """For callers whose execution cannot be superseded."""


class ModelStore:
    """The volume under `root`; holds no state of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.volume = Volume(root)
        self.staging = Staging(root)
        self.uploads = Uploads(root)

    # ---- reading ----

    def names(self) -> list[str]:
        """Returns the models' names in alphabetical order.

        Raises:
            VolumeUnavailable: the volume is not mounted or cannot be read.
        """
        with self._accessible("read"):
            entries = [entry.name for entry in os.scandir(self.root) if entry.is_dir()]
        return sorted(name for name in entries if is_model_name(name))

    def exists(self, name: str) -> bool:
        """Returns True if a model has this name, ignoring case: a volume may not distinguish cases."""
        return name.lower() in {other.lower() for other in self.names()}

    def require_free(self, name: str) -> None:
        """Checks that no model has this name.

        Raises:
            InvalidName: a model cannot have it.
            ModelExists: a model has it, ignoring case.
        """
        _check_name(name)
        if self.exists(name):
            raise ModelExists(
                f"A model named {name!r} exists already (ignoring case).",
                "Choose another target, or delete that model first.",
            )

    def path(self, name: str) -> Path:
        """Returns the folder of a model.

        Raises:
            InvalidName: a model cannot have this name.
            ModelNotFound: no model has it.
        """
        _check_name(name)
        if name not in self.names():
            raise self.not_found(name)
        return self.root / name

    def not_found(self, name: str) -> ModelNotFound:
        """Returns the error for a name that no model on the volume has."""
        return ModelNotFound(
            f"No model is named {name!r}; there are: {listed(self.names())}.",
            "Check the name, or import the model first. GET /v1/models also lists the models of the server of "
            "GENERATE_BACKEND_URL.",
        )

    def describe(self, name: str) -> ModelSummary:
        """Returns a model's summary, from its files' headers. Raises what `path` raises."""
        bases = BaseOffer(lambda: hub_ids_of_folders(self.root / other for other in self.names()))
        return bases.complete(describe_folder(self.path(name), name))

    def free_bytes(self) -> int:
        """Returns the bytes of the volume that this process may use."""
        with self._accessible("read"):
            stats = os.statvfs(self.root)
        return stats.f_bavail * stats.f_frsize

    def total_bytes(self) -> int:
        """Returns the size of the volume."""
        with self._accessible("read"):
            stats = os.statvfs(self.root)
        return stats.f_blocks * stats.f_frsize

    def check(self) -> None:
        """Checks that the volume is there, can be written and has space left.

        Raises:
            VolumeUnavailable: one is not so; the message gives the reason.
        """
        self.volume.require_writable()

    @contextmanager
    def _accessible(self, action: str) -> Iterator[None]:
        self.volume.require()
        with self.volume.accessible(action):
            yield

    def incoming(self, relative: str) -> Path:
        """Returns a file or folder that was put on the volume, from its path `incoming/…`.

        Raises:
            InvalidName: the path leaves `incoming/`.
            SourceNotFound: nothing is there.
        """
        base = (self.root / INCOMING).resolve()
        try:
            path = (self.root / relative).resolve()
            exists = path.exists()
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL, a loop of links
            raise InvalidName(
                f"{relative!r} cannot be a path ({error}).", f'Write it like "{INCOMING}/llama".'
            ) from error
        if Path(relative).is_absolute() or not path.is_relative_to(base) or path == base:
            raise InvalidName(
                f"{relative!r} is not a path below {INCOMING}/ on the volume.",
                f'Write it like "{INCOMING}/llama".',
            )
        if not exists:
            raise self._source_not_found(relative, base)
        return path

    @staticmethod
    def _source_not_found(relative: str, base: Path) -> SourceNotFound:
        entries = sorted(entry.name for entry in base.iterdir()) if base.is_dir() else []
        found = listed(entries, none="nothing")
        return SourceNotFound(
            f"{relative!r} is not on the volume; {INCOMING}/ holds: {found}.",
            f"Put the files into {INCOMING}/ on the model volume first.",
        )

    def result(self, name: str) -> Path:
        """Returns the path of a file that a job writes for people: `results/<name>`."""
        return self.root / RESULTS / name

    # ---- writing ----

    @contextmanager
    def replacing_result(self, name: str, *, execution: str, confirm: Callable[[], None]) -> Iterator[FileIO]:
        """Yields a new file, readable by all, that becomes `results/<name>` if the block ends without an error.

        It may stay open: what is written to it afterwards is in the file of that name until another replaces it.

        Args:
            execution: names the staging folder.
            confirm: called last, before the rename; raises if this execution must not publish any more.
        """
        staging = self.staging.root / execution
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
        """Yields a staging folder that becomes the model `name` if the block ends without an error, and is removed if not.

        Args:
            execution: `<job>.<run>.<service>`; names the staging folder, so that two executions of a job never share one.
            confirm: called last, before the rename; raises if this execution must not publish any more.
            take_over: the folder may hold what a killed execution of the same job has left, next to its journal.

        Raises:
            InvalidName: a model cannot have this name.
            ModelExists: a model has it, before the block or after it.
        """
        self.require_free(name)
        with self.staging.folder(execution, take_over=take_over) as staged:
            yield staged
            _make_durable(staged)
            self.require_free(name)
            confirm()
            self._rename(staged, name)
            _sync(self.root)

    def _rename(self, staged: Path, name: str) -> None:
        try:
            staged.rename(self.root / name)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                self.require_free(name)  # another execution was faster
            raise

    def delete(self, name: str) -> None:
        """Removes a model: by one rename, then file by file. Raises what `path` raises."""
        folder = self.path(name)
        trash = self.root / TRASH / uuid.uuid4().hex
        with self._accessible("written"):
            trash.parent.mkdir(exist_ok=True)
            folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def sweep(self, is_alive: Callable[[str], bool], service: str = "") -> list[str]:
        """Removes the trash and the staging folders of executions that are not alive (see `Staging.sweep`)."""
        for entry in sorted((self.root / TRASH).glob("*")):
            shutil.rmtree(entry, ignore_errors=True)
        return self.staging.sweep(is_alive, service)


def _check_name(name: str) -> None:
    if not is_model_name(name):
        raise InvalidName(f"{name!r} cannot name a model.", NAME_RULE)


def _make_readable(folder: Path) -> None:
    """Makes a folder that all may read, for any umask; an existing one stays as it is."""
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o755)


def _make_durable(folder: Path) -> None:
    """Writes everything to the disk and makes it readable by all: files 0644, folders 0755."""
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
