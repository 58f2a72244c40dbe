"""Uploads to a service by the tus protocol: in chunks with checksums, continued after a break or a restart."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from typing import IO

from graftwerk.errors import ApiError, ClientError, UnreachableError
from graftwerk.http import HttpService
from graftwerk.local_files import LocalFile
from graftwerk.models import Progress
from graftwerk.protocol import MAX_FAILURES, PAUSE_SECONDS, is_temporary
from graftwerk.upload_memory import UploadMemory

CHUNK_BYTES = 8 * 2**20
TUS = {"Tus-Resumable": "1.0.0"}

RESUMED_AFTER = (409, 423, 460)
"""Refusals after which the offset is requested again: another offset, a connection that just broke, damaged bytes."""

Report = Callable[[Progress], None]


class Uploader:
    """Uploads local files one after the other.

    Args:
        service: connections to the service.
        memory: uploads that were begun before.
        report: called with the progress of all files together.
    """

    def __init__(self, service: HttpService, memory: UploadMemory, report: Report = lambda _: None) -> None:
        self._service = service
        self._memory = memory
        self._report = report
        self._total = self._done = 0

    def upload(self, files: Sequence[LocalFile]) -> list[str]:
        """Returns the ids of finished uploads of the files, in their order.

        Raises:
            ApiError: the service refuses a file.
            UnreachableError: it does not respond for half a minute.
            ClientError: a file changed meanwhile.
        """
        self._total, self._done = sum(file.size_bytes for file in files), 0
        return [self._upload(file) for file in files]

    def _upload(self, file: LocalFile) -> str:
        path, offset = self._resumed(file) or self._created(file)
        before, failures = self._done, 0
        with file.path.open("rb") as content:
            while offset < file.size_bytes:
                self._show("uploading", before + offset)
                try:
                    offset, failures = self._send(path, file, content, offset), 0
                except (ApiError, UnreachableError) as error:
                    failures += 1
                    if failures >= MAX_FAILURES or not _is_resumable(error):
                        raise
                    self._service.pause(PAUSE_SECONDS)
                    offset = self._offset(path, offset)
        self._done = before + file.size_bytes
        self._show("uploading", self._done)
        return path.rpartition("/")[2]

    def _resumed(self, file: LocalFile) -> tuple[str, int] | None:
        entry = self._memory.get(file)
        if entry is None:
            return None
        try:
            return entry["path"], self._requested_offset(entry["path"])
        except ApiError as error:
            if error.status != 404:
                raise
            self._memory.forget(file)
            return None

    def _created(self, file: LocalFile) -> tuple[str, int]:
        sha256 = self._digest(file)
        metadata = {"filename": file.filename, "sha256": sha256}
        pairs = [f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items()]
        headers = {**TUS, "Upload-Length": str(file.size_bytes), "Upload-Metadata": ",".join(pairs)}
        response = self._service.send("POST", "/api/uploads", headers=headers)
        path = f"/api/uploads/{response.headers['Location'].rpartition('/')[2]}"
        self._memory.put(file, path, sha256)
        return path, 0

    def _digest(self, file: LocalFile) -> str:
        digest, read = hashlib.sha256(), 0
        with file.path.open("rb") as content:
            while piece := content.read(CHUNK_BYTES):
                digest.update(piece)
                read += len(piece)
                self._report(Progress(stage="reading", done=read, total=file.size_bytes, unit="bytes"))
        return digest.hexdigest()

    def _send(self, path: str, file: LocalFile, content: IO[bytes], offset: int) -> int:
        content.seek(offset)
        chunk = content.read(min(CHUNK_BYTES, file.size_bytes - offset))
        if not chunk:
            raise ClientError(f"{file.path} became shorter while it was uploaded.", "Upload it again.")
        checksum = base64.b64encode(hashlib.sha1(chunk, usedforsecurity=False).digest()).decode()
        headers = {
            **TUS,
            "Upload-Offset": str(offset),
            "Upload-Checksum": f"sha1 {checksum}",
            "Content-Type": "application/offset+octet-stream",
        }
        response = self._service.send("PATCH", path, headers=headers, content=chunk)
        return int(response.headers["Upload-Offset"])

    def _offset(self, path: str, known: int) -> int:
        """Returns the offset at the service, the known one while it does not respond."""
        try:
            return self._requested_offset(path)
        except (ApiError, UnreachableError) as error:
            if not is_temporary(error):
                raise
            return known

    def _requested_offset(self, path: str) -> int:
        return int(self._service.send("HEAD", path, headers=TUS).headers["Upload-Offset"])

    def _show(self, stage: str, done: int) -> None:
        self._report(Progress(stage=stage, done=done, total=self._total, unit="bytes"))


def _is_resumable(error: ApiError | UnreachableError) -> bool:
    is_full = isinstance(error, ApiError) and error.status == 507
    return not is_full and (is_temporary(error) or getattr(error, "status", 0) in RESUMED_AFTER)
