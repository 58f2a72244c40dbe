"""Uploads and downloads: a large file over connections that break, and the memory of the API's processes meanwhile."""

import argparse
import base64
import hashlib
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from graftwerk import Client
from graftwerk.local_service import LocalService, free_port
from graftwerk.supervisor_config import ServiceLocation

from bench.memory import memory
from bench.service import Service

Json = dict[str, Any]

MINIATURE = Path(__file__).parents[1] / "examples" / "miniature"
TUS = {"Tus-Resumable": "1.0.0"}
BLOCK_BYTES = 2**20
GROWTH_LIMIT_BYTES = 20_000_000
WARM_REQUESTS = 40
SAMPLE_SECONDS = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--bytes", type=int, default=2_000_000_000, help="size of the file")
    parser.add_argument("--breaks", type=int, default=5, help="connections that break on the way")


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Uploads, imports and downloads a file; another digest or a process that grows too much is a violation."""
    folder: Path = options.folder / "uploads"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    file, digest = make_file(folder / "files" / "weights.dat", options.bytes)
    report: Json = {"bytes": options.bytes, "breaks": options.breaks}
    with running(folder) as service:
        with Growth(service) as growth:
            ids, offsets, seconds = upload(service, file, digest, options.breaks)
        report["upload"] = {"resumed_at": offsets, "seconds": round(seconds, 1), "growth": growth.bytes}
        report["import"] = import_all(service, [*ids, small_upload(service)], digest)
        with Growth(service) as growth, Client(service.location.url) as client:
            start = time.monotonic()
            pulled = client.pull("uploaded", folder)
        found = digest_of(pulled.folder / file.name)
        report["pull"] = {"seconds": round(time.monotonic() - start, 1), "growth": growth.bytes}
    report["sha256_equal"] = found == digest and report["import"]["sha256"] == digest
    shutil.rmtree(folder)
    return report, violations_of(report)


def violations_of(report: Json) -> list[str]:
    """Returns what is not as promised."""
    grown = [max(report[name]["growth"]) for name in ("upload", "pull")]
    found = [f"an API process grew by {size} bytes" for size in grown if size > GROWTH_LIMIT_BYTES]
    if not report["sha256_equal"]:
        found.append("the file has another digest")
    if len(report["upload"]["resumed_at"]) != report["breaks"] or 0 in report["upload"]["resumed_at"]:
        found.append("bytes before a break were lost")
    return found


def make_file(path: Path, size: int) -> tuple[Path, str]:
    """Writes a file of bytes that do not repeat, and returns it with its SHA-256."""
    numbers, digest = random.Random(size), hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, BLOCK_BYTES):
            block = numbers.randbytes(min(BLOCK_BYTES, size - start))
            file.write(block)
            digest.update(block)
    return path, digest.hexdigest()


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def running(folder: Path) -> Iterator[Service]:
    """A service with an empty volume, after some requests."""
    location = ServiceLocation(data_dir=folder / "service", models_dir=folder / "models", port=free_port())
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GRAFTWERK_")}
    with LocalService(location, environ) as local:
        local.wait_until_ready()
        service = Service(location)
        for _ in range(WARM_REQUESTS):  # each process has imported everything and answered
            httpx.get(f"{location.url}/api/models", timeout=60)
        yield service
        service.http.close()


class Growth:
    """Context manager that keeps the largest growth of the resident memory of each API process, in bytes."""

    def __init__(self, service: Service) -> None:
        self._processes = service.api()
        self._before = [memory([process])[1] for process in self._processes]
        self.bytes = [0] * len(self._processes)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Growth":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            for number, process in enumerate(self._processes):
                grown = memory([process])[1] - self._before[number]
                self.bytes[number] = max(self.bytes[number], grown)


def upload(service: Service, file: Path, digest: str, breaks: int) -> tuple[list[str], list[int], float]:
    """Uploads a file in one request per connection; returns the ids, the offsets after each break, and the seconds."""
    size, offsets = file.stat().st_size, []
    start = time.monotonic()
    url = create(service, size, filename=file.name, sha256=digest)
    for number in range(breaks):
        offset = offset_of(service, url)
        send(service, url, file, offset, stop=offset + (size - offset) // (breaks + 1 - number))
        offsets.append(offset_of(service, url))
    send(service, url, file, offset_of(service, url), stop=size)
    assert offset_of(service, url) == size
    return [url.rpartition("/")[2]], offsets, time.monotonic() - start


def create(service: Service, size: int, **pairs: str) -> str:
    """Creates an upload and returns its address."""
    encoded = [f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items()]
    headers = {**TUS, "Upload-Length": str(size), "Upload-Metadata": ",".join(encoded)}
    return str(service.http.post("/api/uploads", headers=headers).raise_for_status().headers["Location"])


def offset_of(service: Service, url: str) -> int:
    """Returns the offset of an upload."""
    return int(service.http.head(url, headers=TUS).raise_for_status().headers["Upload-Offset"])


def send(service: Service, url: str, file: Path, offset: int, *, stop: int) -> None:
    """Announces the rest of a file, and breaks the connection at `stop` if that is before its end."""
    size = file.stat().st_size
    headers = {
        **TUS,
        "Content-Type": "application/offset+octet-stream",
        "Content-Length": str(size - offset),
        "Upload-Offset": str(offset),
    }
    try:
        with httpx.Client(base_url=service.location.url, timeout=120) as http:
            http.patch(url, headers=headers, content=blocks(file, offset, stop, size)).raise_for_status()
    except BrokenPipeError:
        assert stop < size


def blocks(file: Path, offset: int, stop: int, size: int) -> Iterator[bytes]:
    """Yields a part of a file; raises BrokenPipeError after it unless it reaches the end."""
    with file.open("rb") as content:
        content.seek(offset)
        while offset < stop:
            block = content.read(min(BLOCK_BYTES, stop - offset))
            offset += len(block)
            yield block
    if stop < size:
        raise BrokenPipeError


def small_upload(service: Service) -> str:
    """Uploads a tokenizer, by which the files are a model."""
    content = (MINIATURE / "llama" / "tokenizer.model").read_bytes()
    url = create(service, len(content), filename="tokenizer.model")
    headers = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    service.http.patch(url, headers=headers, content=content).raise_for_status()
    return url.rpartition("/")[2]


def import_all(service: Service, ids: list[str], digest: str) -> Json:
    """Imports the uploads, and returns the seconds and the large file's digest in the manifest."""
    start = time.monotonic()
    body = {
        "kind": "import",
        "source": {"upload": ids},
        "target": "uploaded",
        "sha256": {"weights.dat": digest},
    }
    job = service.wait(service.http.post("/api/jobs", json=body).raise_for_status().json()["id"])
    assert job["status"] == "succeeded", job["error"]
    manifest = service.http.get("/api/models/uploaded/files/manifest.json").json()
    return {"seconds": round(time.monotonic() - start, 1), "sha256": manifest["files"]["weights.dat"]}
