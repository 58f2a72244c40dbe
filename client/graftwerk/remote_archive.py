"""Archive of a model at a service as a file: read in order over one connection, continued by ranges after a break."""

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NoReturn

import httpx

from graftwerk.errors import ApiError, ClientError, UnreachableError
from graftwerk.http import HttpService
from graftwerk.protocol import MAX_FAILURES, PAUSE_SECONDS, is_temporary

KEPT_BYTES = 64 * 1024
"""Bytes before the position that are kept: tarfile steps back by one."""

SKIPPED_BYTES = 2**20
"""A shorter way ahead is read and dropped, a longer one is a new request."""


class RemoteArchive(io.RawIOBase):
    """Tar archive at `path` of a service; `etag` and `size_bytes` are those of the version that is read.

    Raises:
        ApiError: from reading, if the service refuses the download.
        ClientError: from reading, if the model has changed.
        UnreachableError: from reading, if the service does not respond for half a minute.
    """

    def __init__(self, service: HttpService, path: str) -> None:
        super().__init__()
        self._service, self._path = service, path
        head = service.send("HEAD", path)
        self.etag = head.headers["ETag"]
        self.size_bytes = int(head.headers["Content-Length"])
        self._position = 0
        self._stream: Iterator[bytes] | None = None
        self._response = ExitStack()
        self._buffer, self._buffer_start = bytearray(), 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Sets the position, from the beginning only."""
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only positions from the beginning")
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Returns `size` bytes from the position, fewer only at the end."""
        end = self.size_bytes if size < 0 else min(self._position + size, self.size_bytes)
        received_to = self._buffer_start + len(self._buffer)
        if not self._buffer_start <= self._position <= received_to + SKIPPED_BYTES:
            self._restart()
        while self._buffer_start + len(self._buffer) < end:
            self._receive()
        begin = self._position - self._buffer_start
        piece = bytes(self._buffer[begin : begin + max(0, end - self._position)])
        self._position += len(piece)
        self._drop_old()
        return piece

    def _restart(self) -> None:
        self._response.close()
        self._stream = None
        self._buffer, self._buffer_start = bytearray(), self._position

    def _drop_old(self) -> None:
        excess = self._position - self._buffer_start - KEPT_BYTES
        if excess > KEPT_BYTES:
            del self._buffer[:excess]
            self._buffer_start += excess

    def _receive(self) -> None:
        failures = 0
        while True:
            try:
                stream = self._stream or self._request()
                block = next(stream, b"")
                if block:
                    self._buffer += block
                    return
                reason = UnreachableError("The download ended early.", "Try again.")
            except (ApiError, UnreachableError) as error:
                if not is_temporary(error):
                    self._raise(error)
                reason = (
                    error
                    if isinstance(error, UnreachableError)
                    else UnreachableError(error.detail, error.hint)
                )
            except httpx.HTTPError as error:
                reason = UnreachableError(
                    f"The download from {self._service.url} broke: {error}.", "Try again."
                )
            failures += 1
            self._response.close()
            self._stream = None
            if failures >= MAX_FAILURES:
                raise reason
            self._service.pause(PAUSE_SECONDS)

    def _request(self) -> Iterator[bytes]:
        start = self._buffer_start + len(self._buffer)
        headers = {"Range": f"bytes={start}-", "If-Match": self.etag, "Accept-Encoding": "identity"}
        self._response = ExitStack()
        response = self._response.enter_context(self._service.download(self._path, headers=headers))
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ClientError(
                "The service sent another part of the archive than was requested.",
                "Check whether a proxy between changes `Range`.",
            )
        self._stream = response.iter_raw()
        return self._stream

    def _raise(self, error: ApiError | UnreachableError) -> NoReturn:
        if isinstance(error, ApiError) and error.status == 412:
            raise ClientError("The model has changed while it was downloaded.", "Pull it again.") from error
        raise error

    def close(self) -> None:
        """Closes the connection."""
        self._response.close()
        super().close()
