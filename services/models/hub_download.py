"""Download of a repository's files into a staging folder.

The Hub's library deletes an unfinished file when its process ends. These ranged requests continue it: the journal next to the
staging folder names the commit, size and digest of each staged file, and everything is digested before it counts.
"""

import hashlib
import json
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from services.errors import HubFileChanged, HubUnreachable
from services.files.disk_full import disk_full_as_error
from services.models.hub import POLL_SECONDS, Hub, Location, Repository, http_client
from services.models.hub_errors import unreachable
from services.models.hub_files import HubFile
from services.models.staging import journal_of
from services.progress import Progress, Report, ignore_progress

PIECE_BYTES = 2**20
AHEAD_PIECES = 64
"""Pieces (reads of the network, 64 KiB or less) that are received while the disk is slow."""

SILENCE_SECONDS = 30.0
"""Silence after which a connection counts as broken."""

RETRY_SECONDS = (0.5, 1, 2, 4, 8, 15, 30, 30, 30, 30)
"""Waits before the next attempt; each byte that arrives begins them again."""


class _Digests:
    """SHA-256 of a file, and the digest by which its commit lists it."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._blob = hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)

    def update(self, piece: bytes) -> None:
        self._sha256.update(piece)
        if not self._file.is_lfs:
            self._blob.update(piece)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self._file.is_lfs else self._blob.hexdigest()


@dataclass(slots=True)
class Download:
    """Download of some files of a repository into `staging`; `resumed_bytes` of them were there already."""

    hub: Hub
    repository: Repository
    files: Sequence[HubFile]
    staging: Path
    report: Report = ignore_progress
    resumed_bytes: int = 0
    _done: int = field(default=0, init=False)

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def account(self) -> str:
        """Counts of files and bytes for the job's log."""
        resumed = f", {self.resumed_bytes} of them from an earlier try" if self.resumed_bytes else ""
        return f"{len(self.files)} files with {self.total_bytes} bytes{resumed}"

    def run(self) -> dict[str, str]:
        """Fetches the files and returns the SHA-256 of each by its path.

        Raises:
            HubFileChanged: a file is not the one that its commit lists.
            HubUnreachable: the connection broke too often.
            DiskFull: the volume is full.
            GraftwerkError: as `Hub.locate`.
        """
        self._take_over()
        return {file.path: self._fetch(file) for file in self.files}

    def _take_over(self) -> None:
        """Removes everything that an earlier execution has staged except files of the same commit, digest and size."""
        journal = journal_of(self.staging)
        begun = set(_lines(journal))
        wanted = {file.path: self._line(file) for file in self.files}
        for path in sorted(self.staging.rglob("*"), reverse=True):
            name = path.relative_to(self.staging).as_posix()
            if path.is_dir():
                with suppress(OSError):  # it still holds files
                    path.rmdir()
            elif wanted.get(name) not in begun:
                path.unlink()
        journal.write_text("".join(f"{line}\n" for line in wanted.values()), encoding="utf-8")
        self.resumed_bytes = sum(path.stat().st_size for path in self.staging.rglob("*") if path.is_file())

    def _line(self, file: HubFile) -> str:
        identity = {"repository": self.repository.name, "commit": self.repository.commit, **asdict(file)}
        return json.dumps(identity, sort_keys=True)

    def _fetch(self, file: HubFile) -> str:
        path = self.staging / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        is_resumed = path.exists() and path.stat().st_size > 0
        if is_resumed and path.stat().st_size > file.size_bytes:
            path.unlink()
        digests = self._complete(file, path)
        if digests.etag != file.etag and is_resumed:  # a power failure may leave holes in a file
            self._done -= file.size_bytes
            path.unlink()
            digests = self._complete(file, path)
        if digests.etag != file.etag:
            raise HubFileChanged(
                f"{file.path} of {self.repository.name} has the digest {digests.etag}; commit {self.repository.commit} "
                f"lists {file.etag}.",
                "Submit the import again. If it fails in the same way, the Hub or the mirror serves a damaged file.",
            )
        return digests.sha256

    def _complete(self, file: HubFile, path: Path) -> _Digests:
        """Writes the rest of a file and returns the digests of all of it."""
        digests = _Digests(file)
        with disk_full_as_error(path, file.size_bytes), path.open("ab+", buffering=0) as out:
            out.seek(0)
            done = 0
            while piece := out.read(PIECE_BYTES):
                digests.update(piece)
                done += len(piece)
                self._advance("checking what was downloaded before", len(piece))
            for piece in self._rest(file, done):
                out.write(piece)
                digests.update(piece)
                self._advance("downloading", len(piece))
        return digests

    def _advance(self, stage: str, count: int) -> None:
        self._done += count
        self.hub.check_canceled()
        self.report(Progress(stage, self._done, self.total_bytes))

    def _rest(self, file: HubFile, start: int) -> Iterator[bytes]:
        """Yields the bytes of a file from `start`, over as many connections as it takes."""
        failures = 0
        while start < file.size_bytes:
            try:
                for piece in self._connection(file, start):
                    start += len(piece)
                    failures = 0
                    yield piece
                reason = "the connection ended early"
            except (httpx.HTTPError, HubUnreachable) as error:
                reason = type(error).__name__
            if start < file.size_bytes:
                self._wait(failures, f"{file.path}: {reason}")
                failures += 1

    def _wait(self, failures: int, reason: str) -> None:
        if failures >= len(RETRY_SECONDS):
            raise unreachable(self.hub.server, f"{reason}, {failures + 1} times in succession")
        until = time.monotonic() + RETRY_SECONDS[failures]
        while (left := until - time.monotonic()) > 0:
            self.hub.check_canceled()
            time.sleep(min(POLL_SECONDS, left))

    def _connection(self, file: HubFile, start: int) -> Iterator[bytes]:
        """Yields the pieces of one connection. A thread receives them, so that a silent one can be left behind."""
        place = self.hub.locate(self.repository, file)
        with _Receiver(place, start, file.size_bytes) as receiver:
            while (piece := receiver.next()) is not None:
                if piece:
                    yield piece
                self.hub.check_canceled()


class _Receiver:
    """A thread that receives a file from `start` on; a context manager that leaves it behind."""

    def __init__(self, place: Location, start: int, size_bytes: int) -> None:
        self._place, self._start, self._size_bytes = place, start, size_bytes
        self._pieces: queue.Queue[bytes | Exception | None] = queue.Queue(AHEAD_PIECES)
        self._left = threading.Event()

    def __enter__(self) -> "_Receiver":
        threading.Thread(target=self._run, name="hub-download", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def next(self) -> bytes | None:
        """Returns the next piece, b"" if there is none yet, None at the end. Raises what the connection has raised."""
        try:
            found = self._pieces.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return b""
        if isinstance(found, Exception):
            raise found
        return found

    def _run(self) -> None:
        try:
            for piece in self._receive():
                self._put(piece)
            self._put(None)
        except Exception as error:  # noqa: BLE001  (the reading thread raises it)
            self._put(error)

    def _put(self, item: bytes | Exception | None) -> None:
        while not self._left.is_set():
            with suppress(queue.Full):
                self._pieces.put(item, timeout=POLL_SECONDS)
                return

    def _receive(self) -> Iterator[bytes]:
        headers = {**self._place.headers, "Range": f"bytes={self._start}-"}
        url = self._place.url
        with http_client().stream("GET", url, headers=headers, timeout=SILENCE_SECONDS) as response:
            response.raise_for_status()
            left = self._size_bytes - self._start
            skip = 0 if response.status_code == httpx.codes.PARTIAL_CONTENT else self._start
            if skip == 0 and self._start and not self._is_range(response):
                raise httpx.RemoteProtocolError("the server sent another range")
            for piece in response.iter_raw():
                wanted = piece[skip:]
                skip = max(0, skip - len(piece))
                if self._left.is_set():
                    return
                if len(wanted) > left:
                    raise HubFileChanged(
                        f"The Hub sends more than the {self._size_bytes} bytes of a file.",
                        "Submit the import again.",
                    )
                left -= len(wanted)
                if wanted:
                    yield wanted

    def _is_range(self, response: httpx.Response) -> bool:
        return str(response.headers.get("Content-Range", "")).startswith(f"bytes {self._start}-")


def _lines(journal: Path) -> list[str]:
    try:
        return journal.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
