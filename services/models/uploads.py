"""Uploads: files that arrive in pieces and stay invisible until an import job publishes them.

An upload is a folder `<volume>/.uploads/<id>`: `data` holds the bytes that have arrived, so that its size is the offset at
which the next ones belong, and `upload.json` the rest, written once. Every process can append to every upload: a lock on `data`
admits one at a time, which the kernel releases when a process dies.

The bytes are not synced to the disk one request at a time: after a power failure `data` is at most shorter, its client
resumes from the new offset, and the import job writes everything durably.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from uuid import uuid4

from services.errors import (
    DiskFull,
    InvalidName,
    UploadLocked,
    UploadNotFound,
    UploadQuotaExceeded,
    UploadTooLarge,
    WrongOffset,
)
from services.models.relative_path import fault_of_path
from services.models.upload_file import Appender, Checksum, NewUpload, Upload, UploadLimits

UPLOADS = ".uploads"
DATA, RECORD, LOCK = "data", "upload.json", ".lock"

SETTLE_SECONDS = 1.0
"""Time that a reader waits for a request whose connection broke a moment ago and that still writes what it received."""

PATIENCE_SECONDS = 0.2
"""Time that a writer waits for the lock: readers and ending requests hold it for a moment."""

POLL_SECONDS = 0.02

ID_PATTERN = r"^[0-9a-f]{32}$"

LEFTOVER_SECONDS = 3600
"""Age at which a folder without a record is what a process left that died while it made or removed an upload."""


class Uploads:
    """The uploads of a volume; holds no state of its own."""

    def __init__(self, volume: Path) -> None:
        self._volume = volume
        self.root = volume / UPLOADS

    # ---- reading ----

    def get(self, upload_id: str) -> Upload:
        """Returns an upload.

        Raises:
            UploadNotFound: there is none with this id, or it has expired.
        """
        upload = self._read(upload_id)
        if upload is None or upload.is_expired:
            raise _not_found(upload_id)
        return upload

    def settled(self, upload_id: str) -> Upload:
        """Returns an upload, if possible after the request that writes to it at the moment has ended.

        Raises:
            UploadNotFound: there is none with this id, or it has expired.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            try:
                with self._locked(self.get(upload_id), patience_seconds=0):
                    break
            except UploadLocked:
                time.sleep(POLL_SECONDS)
        return self.get(upload_id)

    def all(self) -> list[Upload]:
        """Returns every upload, those that have expired but are not removed yet too."""
        return [upload for upload in map(self._read, self._ids()) if upload is not None]

    def _ids(self) -> list[str]:
        with suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        return []

    def _read(self, upload_id: str) -> Upload | None:
        folder = self.root / upload_id
        if not re.fullmatch(ID_PATTERN, upload_id):
            return None
        try:
            record = json.loads((folder / RECORD).read_bytes())
            status = (folder / DATA).stat()
        except FileNotFoundError:  # it is being made or removed
            return None
        expires_at = status.st_mtime + record.pop("retention_seconds")
        return Upload(
            id=upload_id,
            data=folder / DATA,
            received_bytes=status.st_size,
            expires_at=expires_at,
            **record,
        )

    # ---- writing ----

    def create(self, new: NewUpload, limits: UploadLimits) -> Upload:
        """Creates an upload without bytes.

        Raises:
            InvalidName: a file of a model cannot have its path.
            UploadTooLarge: it is larger than one upload may be.
            UploadQuotaExceeded: with the unfinished uploads it exceeds the quota.
            DiskFull: it does not fit on the volume.
        """
        _check_file(new, limits)
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two processes never count on the same bytes of the quota
            self._check_room(new, limits)
            return self._make(new, limits)

    def _check_room(self, new: NewUpload, limits: UploadLimits) -> None:
        unfinished = [upload for upload in self.all() if not upload.is_finished]
        promised = sum(upload.size_bytes for upload in unfinished)
        if promised + new.size_bytes > limits.quota_bytes:
            raise UploadQuotaExceeded(
                f"The upload has {new.size_bytes} bytes, {len(unfinished)} unfinished ones have {promised}; together they "
                f"may have {limits.quota_bytes}.",
                "Finish or delete the others, wait until they expire, or raise GRAFTWERK_UPLOAD_QUOTA_BYTES.",
            )
        missing = sum(upload.size_bytes - upload.received_bytes for upload in unfinished)
        stats = os.statvfs(self.root)
        free = stats.f_bavail * stats.f_frsize
        if new.size_bytes > free - missing - limits.reserved_bytes:
            raise DiskFull(
                f"The upload has {new.size_bytes} bytes; {free} are free on the volume; jobs have reserved "
                f"{limits.reserved_bytes} of them, and other uploads need {missing}.",
                "Delete models that are not needed, or enlarge the volume.",
            )

    def _make(self, new: NewUpload, limits: UploadLimits) -> Upload:
        upload_id = uuid4().hex
        folder = self.root / upload_id
        folder.mkdir()
        (folder / DATA).touch()
        record = {
            "size_bytes": new.size_bytes,
            "filename": new.filename,
            "sha256": new.sha256,
            "metadata": new.metadata,
            "retention_seconds": limits.retention_seconds,
        }
        part = folder / f"{RECORD}.part"
        part.write_text(json.dumps(record), encoding="utf-8")
        part.rename(folder / RECORD)  # from now on the upload exists
        return self.get(upload_id)

    @contextmanager
    def appending(self, upload_id: str, offset: int, checksum: Checksum | None = None) -> Iterator[Appender]:
        """Opens an upload for the bytes of one request, which are kept however the block ends.

        Raises:
            UploadNotFound: there is no upload with this id, or it has expired.
            UploadLocked: another request writes to it.
            WrongOffset: it does not end at `offset`.
        """
        with self._locked(self.get(upload_id)) as file:
            upload = self.get(upload_id)
            if upload.received_bytes != offset:
                raise WrongOffset(
                    f"The upload ends at offset {upload.received_bytes}; the request begins at {offset}.",
                    "Ask for the offset with HEAD, and send the bytes from there.",
                )
            yield Appender(file, upload, checksum)
            os.utime(upload.data)  # its time starts over, even if there was nothing to write

    def delete(self, upload_id: str) -> None:
        """Removes an upload.

        Raises:
            UploadNotFound: there is no upload with this id, or it has expired.
            UploadLocked: a request writes to it.
        """
        with self._locked(self.get(upload_id)):
            shutil.rmtree(self.root / upload_id, ignore_errors=True)

    def sweep(self, in_use: Collection[str]) -> list[str]:
        """Removes expired uploads and returns their ids; the time of those `in_use` starts over."""
        removed = []
        self._remove_leftovers()
        for upload in self.all():
            if upload.id in in_use:
                with suppress(FileNotFoundError):
                    os.utime(upload.data)
            elif upload.is_expired:
                with suppress(UploadLocked, UploadNotFound), self._locked(upload, patience_seconds=0):
                    shutil.rmtree(self.root / upload.id, ignore_errors=True)
                    removed.append(upload.id)
        return removed

    def _remove_leftovers(self) -> None:
        for upload_id in self._ids():
            folder = self.root / upload_id
            with suppress(FileNotFoundError):
                age_seconds = time.time() - folder.stat().st_mtime
                if age_seconds > LEFTOVER_SECONDS and not (folder / RECORD).exists():
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _locked(self, upload: Upload, *, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[FileIO]:
        try:
            file = upload.data.open("r+b", buffering=0)
        except FileNotFoundError as error:
            raise _not_found(upload.id) from error
        with file:
            _lock(file, patience_seconds)
            if not upload.data.exists():  # removed while this was waiting
                raise _not_found(upload.id)
            yield file


def _lock(file: FileIO, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise UploadLocked(
                    "Another request writes to this upload.",
                    "Send one request at a time; try again in a moment if its connection broke.",
                ) from error
        time.sleep(POLL_SECONDS)


def _check_file(new: NewUpload, limits: UploadLimits) -> None:
    if new.size_bytes > limits.each_bytes:
        raise UploadTooLarge(
            f"The upload has {new.size_bytes} bytes; one may have {limits.each_bytes}.",
            "Raise GRAFTWERK_UPLOAD_LIMIT_BYTES, or put the file into incoming/ on the model volume.",
        )
    fault = None if new.filename is None else fault_of_path(new.filename)
    if fault is not None:
        raise InvalidName(
            f"The filename {str(new.filename)[:80]!r} is {fault}.",
            "Send the file's path within the model, such as `tokenizer.model`.",
        )


def _not_found(upload_id: str) -> UploadNotFound:
    return UploadNotFound(
        f"There is no upload {upload_id[:80]!r}, or it has expired.",
        "Begin a new one: unfinished and unused uploads are removed after GRAFTWERK_UPLOAD_RETENTION_SECONDS.",
    )
