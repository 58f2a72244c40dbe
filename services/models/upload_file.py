"""One upload: its state, its announcement, and the bytes that one request appends to it."""

import hashlib
import os
import time
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from services.errors import ChecksumMismatch, UploadTooLarge
from services.files.disk_full import disk_full_as_error

CHECKSUMS = ("sha1", "sha256", "md5")
"""Algorithms of `Upload-Checksum`, by their names in hashlib."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUpload:
    """Announced file: size in bytes, path in the model (`filename`), SHA-256, and all metadata as its client sent it."""

    size_bytes: int
    filename: str | None = None
    sha256: str | None = None
    metadata: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """Limits of the settings, and the bytes of the volume that jobs have reserved."""

    each_bytes: int
    quota_bytes: int
    retention_seconds: int
    reserved_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """State of an upload; `data` is the file with the bytes that have arrived, `expires_at` a Unix time."""

    id: str
    data: Path
    size_bytes: int
    received_bytes: int
    filename: str | None
    sha256: str | None
    metadata: str
    expires_at: float

    @property
    def is_finished(self) -> bool:
        """True once every byte has arrived."""
        return self.received_bytes == self.size_bytes

    @property
    def is_expired(self) -> bool:
        """True if no request has written to it for the time of the settings."""
        return self.expires_at <= time.time()


@dataclass(frozen=True, slots=True)
class Checksum:
    """Expected digest of the bytes of one request."""

    algorithm: str
    digest: bytes


class Appender:
    """Open upload to which one request appends its bytes."""

    def __init__(self, file: FileIO, upload: Upload, checksum: Checksum | None) -> None:
        self._file, self._checksum = file, checksum
        self.upload = upload
        self._digest = None if checksum is None else hashlib.new(checksum.algorithm, usedforsecurity=False)
        self._start = self._end = file.seek(0, os.SEEK_END)

    @property
    def missing_bytes(self) -> int:
        """Bytes that the upload still lacks."""
        return self.upload.size_bytes - self._end

    def write(self, piece: bytes) -> None:
        """Appends a piece.

        Raises:
            UploadTooLarge: the upload has no room for it; everything of this request is dropped.
            DiskFull: the volume is full; the bytes that were written are kept.
        """
        if len(piece) > self.missing_bytes:
            self._drop()
            raise too_many_bytes(self.upload)
        if self._digest is not None:
            self._digest.update(piece)
        with disk_full_as_error(self.upload.data, len(piece)):
            rest = memoryview(piece)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._end += len(piece)

    def verify(self) -> None:
        """Checks the bytes of this request against its checksum, if it has one.

        Raises:
            ChecksumMismatch: they differ; everything of this request is dropped.
        """
        if self._checksum is None or self._digest is None or self._digest.digest() == self._checksum.digest:
            return
        count = self._end - self._start
        self._drop()
        raise ChecksumMismatch(
            f"The {count} bytes from offset {self._start} have another {self._checksum.algorithm} than "
            "Upload-Checksum says: they were dropped.",
            f"Send the bytes from offset {self._start} again.",
        )

    def _drop(self) -> None:
        self._file.truncate(self._start)
        self._file.seek(self._start)
        self._end = self._start


def too_many_bytes(upload: Upload) -> UploadTooLarge:
    """Returns the error of a request with more bytes than its upload lacks."""
    return UploadTooLarge(
        f"The request has more bytes than the {upload.size_bytes} of the upload leave room for: they were dropped.",
        "Send no more than Upload-Length says, from the offset that HEAD gives.",
    )
