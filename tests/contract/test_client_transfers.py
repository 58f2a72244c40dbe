"""`push` and `pull` of the Python client against the real API, over connections that break."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from graftwerk import ApiError, Client, ClientError, UnreachableError, UsageError
from graftwerk import upload as client_upload
from graftwerk.local_files import default_name
from werkzeug import Response
from werkzeug.wrappers import Request

from tests.api_client import client_of, put_model

Change = Callable[[httpx.Request], httpx.Response | None]


class Breaking(httpx.SyncByteStream):
    """A body whose connection breaks after some bytes."""

    def __init__(self, body: bytes, after: int) -> None:
        self.body, self.after = body, after

    def __iter__(self) -> Iterator[bytes]:
        yield self.body[: self.after]
        if self.after < len(self.body):
            raise httpx.ReadError("connection reset")


class Connection(httpx.BaseTransport):
    """The API in this process. `break_after` breaks the body of each download, `lost` the answer to each n-th PATCH."""

    def __init__(self, app: Any) -> None:
        self.inner = httpx.WSGITransport(app=app)
        self.seen: list[tuple[str, str, str]] = []
        self.break_after: int | None = None
        self.lost = 0
        self.allowed_patches = 10**9

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append((request.method, request.url.path, request.headers.get("Range", "")))
        patches = self.count("PATCH")
        if request.method == "PATCH" and patches > self.allowed_patches:
            raise httpx.ConnectError("connection refused")
        response = self.inner.handle_request(request)
        if request.method == "PATCH" and self.lost and patches % self.lost == 0:
            raise httpx.ReadError("connection reset")
        if self.break_after is not None and response.status_code == 206:
            body = response.read()
            return httpx.Response(206, headers=response.headers, stream=Breaking(body, self.break_after))
        return response

    def count(self, method: str) -> int:
        return sum(found == method for found, _, _ in self.seen)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(client_upload, "CHUNK_BYTES", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def app_and_volume(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    volume = tmp_path_factory.mktemp("volume")
    return client_of(volume).application, volume


@pytest.fixture
def volume(app_and_volume: tuple[Any, Path]) -> Path:
    app, volume = app_and_volume
    app.extensions["graftwerk"].queue.redis.flushall()
    # the folder itself stays: another one would count as a volume that is not mounted
    for entry in volume.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return volume


@pytest.fixture
def connection(app_and_volume: tuple[Any, Path], volume: Path) -> Connection:
    return Connection(app_and_volume[0])


def client_over(transport: httpx.BaseTransport) -> Client:
    return Client("http://127.0.0.1", transport=transport, pause=lambda _: None)


@pytest.fixture
def client(connection: Connection) -> Client:
    return client_over(connection)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    (folder / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "weights.bin").write_bytes(bytes(range(251)) * 30)
    (folder / "empty.txt").write_bytes(b"")
    (folder / ".git" / "HEAD").write_text("junk")
    return folder


def uploaded(volume: Path) -> dict[str, bytes]:
    """Files of all uploads by their names; each must be finished and have the right digest."""
    found = {}
    for place in (volume / ".uploads").iterdir():
        if place.is_dir():
            record, data = json.loads((place / "upload.json").read_text()), (place / "data").read_bytes()
            assert len(data) == record["size_bytes"]
            assert hashlib.sha256(data).hexdigest() == record["sha256"]
            found[record["filename"]] = data
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- push ---------------------------------------------------------------------------------------------


def test_a_folder_is_uploaded_and_its_import_is_submitted(client: Client, folder: Path, volume: Path) -> None:
    job = client.push(folder).job
    wanted = files_of(folder)
    del wanted[".git/HEAD"]
    assert uploaded(volume) == wanted
    assert (job.kind, job.request["target"], len(job.request["source"]["upload"])) == (
        "import",
        "my-model",
        3,
    )


def test_lost_answers_cost_no_bytes(
    client: Client, connection: Connection, folder: Path, volume: Path
) -> None:
    connection.lost = 3
    client.push(folder, "made")
    assert len(uploaded(volume)["deep/weights.bin"]) == 7530
    assert connection.count("PATCH") == 9, "8 chunks and the only one of config.json: none is sent twice"


def test_a_push_continues_after_a_restart(
    client: Client, connection: Connection, folder: Path, volume: Path
) -> None:
    connection.allowed_patches = 4
    with pytest.raises(UnreachableError):
        client.push(folder)
    connection.seen.clear()
    connection.allowed_patches = 10**9
    client_over(connection).push(folder)
    assert connection.count("PATCH") == 5
    assert len(uploaded(volume)) == 3


def test_a_file_that_changed_is_uploaded_anew(
    client: Client, connection: Connection, folder: Path, volume: Path
) -> None:
    connection.allowed_patches = 4
    with pytest.raises(UnreachableError):
        client.push(folder)
    (folder / "deep" / "weights.bin").write_bytes(b"other" * 700)
    connection.allowed_patches = 10**9
    client_over(connection).push(folder)
    contents = [path.read_bytes() for path in (volume / ".uploads").glob("*/data")]
    assert b"other" * 700 in contents


def test_an_upload_that_the_service_forgot_begins_again(
    client: Client, connection: Connection, folder: Path, volume: Path
) -> None:
    client.push(folder, "one")
    shutil.rmtree(volume / ".uploads")
    client.push(folder, "two")
    assert len(uploaded(volume)) == 3


def test_a_refusal_is_not_repeated(folder: Path, tmp_path: Path) -> None:
    connection = Connection(client_of(tmp_path / "small", upload_limit_bytes=100).application)
    with pytest.raises(ApiError) as caught:
        client_over(connection).push(folder)
    assert caught.value.code == "upload_too_large"
    assert connection.count("POST") == 2, "config.json and the large file"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("llama-7b", "llama-7b"), ("a/b/llama-3.1/", "llama-3.1"), ("./my-adapter.zip", "my-adapter"), ("x/m.Q4.gguf", "m.Q4"),
        ("incoming/chinese llama.zip", "chinese-llama"), ("_odd_", "odd"), ("a" * 200, "a" * 96),
    ],
)  # fmt: skip
def test_the_name_of_a_model_is_the_last_part_of_its_source(source: str, name: str) -> None:
    assert default_name(source) == name


def test_a_source_without_a_name_or_without_files_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    for source in (tmp_path / "absent", tmp_path / "hollow", Path("/")):
        with pytest.raises(UsageError):
            client.push(source)


# ---- pull ---------------------------------------------------------------------------------------------


@pytest.fixture
def model(volume: Path) -> Path:
    folder = put_model(volume, "zh", {"config.json": "{}", "extra.bin": "unlisted"})
    tensors = {"a": bytes(range(256)) * 64, "b": bytes(range(7)) * 2000}
    offset, header = 0, {}
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    content = len(head).to_bytes(8, "little") + head + b"".join(tensors.values())
    (folder / "model.safetensors").write_bytes(content)
    manifest = {
        "files": {"config.json": hashlib.sha256(b"{}").hexdigest()},
        "tensors": {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in tensors.items()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_model_is_pulled_and_verified(
    client: Client, connection: Connection, model: Path, tmp_path: Path
) -> None:
    pulled = client.pull("zh", tmp_path)
    assert files_of(tmp_path / "zh") == files_of(model)
    assert (pulled.folder, pulled.verified, pulled.unverified) == (
        tmp_path / "zh", ["config.json", "model.safetensors"], ["extra.bin"],
    )  # fmt: skip
    assert [entry[0] for entry in connection.seen] == ["HEAD", "GET"], "one connection for the whole archive"
    assert not (tmp_path / ".zh.part").exists()


def test_a_broken_download_continues(
    client: Client, connection: Connection, model: Path, tmp_path: Path
) -> None:
    connection.break_after = 7001
    client.pull("zh", tmp_path)
    assert files_of(tmp_path / "zh") == files_of(model)
    starts = [int(entry[2][6:-1]) for entry in connection.seen if entry[0] == "GET"]
    assert starts == sorted(set(starts))
    assert len(starts) > 4


def test_a_pull_continues_after_a_restart(
    client: Client, connection: Connection, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftwerk.pull.BLOCK_BYTES", 1000)
    monkeypatch.setattr("graftwerk.remote_archive.MAX_FAILURES", 1)
    monkeypatch.setattr("graftwerk.remote_archive.SKIPPED_BYTES", 0)
    connection.break_after = 20_000
    with pytest.raises(UnreachableError):
        client.pull("zh", tmp_path)
    half = (tmp_path / ".zh.part" / "files" / "model.safetensors").stat().st_size
    assert 10_000 < half < 20_000
    assert not (tmp_path / "zh").exists()
    connection.break_after = None
    connection.seen.clear()
    client.pull("zh", tmp_path)
    assert files_of(tmp_path / "zh") == files_of(model)
    assert any(int(entry[2][6:-1]) > half for entry in connection.seen if entry[0] == "GET")


def test_a_model_that_changes_meanwhile_is_not_mixed(
    client: Client, connection: Connection, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftwerk.remote_archive.MAX_FAILURES", 1)
    connection.break_after = 20_000
    with pytest.raises(UnreachableError):
        client.pull("zh", tmp_path)
    (model / "config.json").write_text('{"changed": 1}')
    connection.break_after = None
    with pytest.raises(ClientError, match="manifest says"):
        client.pull("zh", tmp_path)
    (model / "config.json").write_text("{}")
    client.pull("zh", tmp_path)
    assert files_of(tmp_path / "zh") == files_of(model)


def test_a_model_that_changes_during_a_download_is_reported(
    connection: Connection, model: Path, tmp_path: Path
) -> None:
    connection.break_after = 20_000
    changed = Client(
        "http://127.0.0.1",
        transport=connection,
        pause=lambda _: (model / "config.json").write_text("{ }") and None,
    )
    with pytest.raises(ClientError, match="has changed while it was downloaded"):
        changed.pull("zh", tmp_path)


def test_a_damaged_tensor_is_found_and_nothing_is_left(client: Client, model: Path, tmp_path: Path) -> None:
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ClientError, match=r"model\.safetensors: b has SHA-256"):
        client.pull("zh", tmp_path)
    assert not (tmp_path / "zh").exists()
    assert not (tmp_path / ".zh.part").exists()


def test_what_is_there_already_is_not_overwritten(client: Client, model: Path, tmp_path: Path) -> None:
    (tmp_path / "zh").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        client.pull("zh", tmp_path)


@pytest.mark.parametrize("name", ["zh/../../escaped", "/etc/escaped", "other/file", "zh", "zh/a\\b"])
def test_an_archive_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    assert_refused(content.getvalue(), tmp_path)


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        link = tarfile.TarInfo("zh/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert_refused(content.getvalue(), tmp_path)


def assert_refused(archive: bytes, tmp_path: Path) -> None:
    def serve(environ: Any, start: Any) -> Any:
        response = Response(archive, headers={"ETag": '"e"'})
        response.make_conditional(Request(environ), accept_ranges=True, complete_length=len(archive))
        return response(environ, start)

    with pytest.raises(ClientError, match="is not a file of the model"):
        client_over(httpx.WSGITransport(app=serve)).pull("zh", tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["etag"]
