"""Connections of hostile clients, against real processes: idle, slow, damaged; and the end of gunicorn's master."""

import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from api.gunicorn_worker import HEAD_SECONDS
from tests.contract.api_server import ApiServer, api_server
from tests.redis_server import until

IDLE = 2100


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("api")) as server:
        yield server


@pytest.fixture
def many_files() -> Iterator[None]:
    """Lets this process have as many connections as the test opens."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], IDLE + 500), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def connect(server: ApiServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def exchange(server: ApiServer, *pieces: bytes) -> bytes:
    """Sends pieces on a connection of their own and returns all that comes back."""
    with connect(server) as client:
        for piece in pieces:
            client.sendall(piece)
        received = b""
        while piece := client.recv(65536):
            received += piece
        return received


def test_idle_connections_lock_nobody_out(server: ApiServer, many_files: None) -> None:
    with ExitStack() as stack:
        for number in range(IDLE):
            client = stack.enter_context(connect(server))
            if number % 2:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        began = time.monotonic()
        for _ in range(20):
            assert httpx.get(f"{server.url}/healthz", trust_env=False, timeout=20).status_code == 200
        assert time.monotonic() - began < 20


def test_a_head_that_never_ends_is_not_waited_for(server: ApiServer) -> None:
    with connect(server) as client:
        client.settimeout(HEAD_SECONDS + 20)
        client.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        began = time.monotonic()
        assert client.recv(1000) == b""
        assert time.monotonic() - began > HEAD_SECONDS / 2


@pytest.mark.parametrize("chunk", [b"zz\r\n{}\r\n", b"2\r\n{}XX", b"-1\r\n", b"2;\x01\r\n{}\r\n"])
def test_a_malformed_chunk_is_400(server: ApiServer, chunk: bytes) -> None:
    head = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert exchange(server, head, chunk).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_breaks_off_is_400_and_not_logged_as_an_error(server: ApiServer) -> None:
    head = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with connect(server) as client:
        client.sendall(head + b"[")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in server.log.read_text()


def test_workers_end_with_a_master_that_is_killed(tmp_path: Path) -> None:
    with api_server(tmp_path) as server:
        pid = server.process.pid
        workers = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        assert len(workers) == 2
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(10)
        until(lambda: not any(is_running(pid) for pid in workers), 10)
        # the threads of a process that has ended by its state may still hold its sockets for a moment
        until(lambda: is_refused(server), 10)


def is_refused(server: ApiServer) -> bool:
    try:
        connect(server).close()
    except ConnectionRefusedError:
        return True
    return False


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
