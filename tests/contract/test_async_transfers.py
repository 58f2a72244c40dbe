"""`push` and `pull` of the asynchronous client against the real API: they run in a thread and end with their task."""

import json
from pathlib import Path
from threading import Event
from typing import Any

import anyio
import anyio.from_thread
import httpx
import pytest
from graftwerk import ApiError, AsyncClient
from graftwerk import upload as client_upload

from tests.api_client import client_of, put_model


class Connection(httpx.BaseTransport):
    """The API in this process; `at_patch` is called with the number of each PATCH."""

    def __init__(self, app: Any) -> None:
        self.inner = httpx.WSGITransport(app=app)
        self.methods: list[str] = []
        self.closed = Event()
        self.at_patch = lambda _: None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.methods.append(request.method)
        if request.method == "PATCH":
            self.at_patch(self.methods.count("PATCH"))
        return self.inner.handle_request(request)

    def close(self) -> None:
        self.closed.set()

    def client(self) -> AsyncClient:
        """A client whose transfers and other requests reach this API."""

        def whole(request: httpx.Request) -> httpx.Response:
            response = self.inner.handle_request(request)
            return httpx.Response(response.status_code, headers=response.headers, content=response.read())

        return AsyncClient("http://127.0.0.1", transport=httpx.MockTransport(whole), transfer_transport=self)


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(client_upload, "CHUNK_BYTES", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


@pytest.fixture
def connection(volume: Path) -> Connection:
    return Connection(client_of(volume).application)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(bytes(range(251)) * 30)
    return folder


def uploaded(volume: Path) -> list[bytes]:
    return [place.read_bytes() for place in volume.glob(".uploads/*/data")]


def test_a_folder_is_pushed_and_its_import_is_submitted(
    connection: Connection, volume: Path, folder: Path
) -> None:
    async def work() -> None:
        async with connection.client() as client:
            handle = await client.push(folder)
            assert (handle.job.kind, handle.job.request["target"]) == ("import", "my-model")

    anyio.run(work)
    assert uploaded(volume) == [bytes(range(251)) * 30]
    assert connection.methods.count("PATCH") == 8


def test_a_model_is_pulled(connection: Connection, volume: Path, tmp_path: Path) -> None:
    put_model(volume, "zh", {"config.json": json.dumps({"model_type": "llama"})})

    async def work() -> None:
        async with connection.client() as client:
            pulled = await client.pull("zh", tmp_path)
            assert (pulled.folder / "config.json").read_text() == '{"model_type": "llama"}'
            with pytest.raises(ApiError) as caught:
                await client.pull("missing", tmp_path)
            assert caught.value.status == 404

    anyio.run(work)


def test_a_cancelled_push_ends_after_its_block_and_continues_later(
    connection: Connection, volume: Path, folder: Path
) -> None:
    async def canceled() -> None:
        async with connection.client() as client:
            with anyio.CancelScope() as scope:

                def cancel(count: int) -> None:
                    if count == 2:
                        anyio.from_thread.run_sync(scope.cancel)

                connection.at_patch = cancel
                await client.push(folder)
                raise AssertionError("the push was not cancelled")

    anyio.run(canceled)
    assert connection.closed.wait(30)
    sent = connection.methods.count("PATCH")
    assert sent < 8

    async def again() -> None:
        async with connection.client() as client:
            await client.push(folder)

    connection.at_patch = lambda _: None
    anyio.run(again)
    assert uploaded(volume) == [bytes(range(251)) * 30]
    assert connection.methods.count("PATCH") == 8
