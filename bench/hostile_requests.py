"""Cost of hostile requests to a running API, without a Redis: `python -m bench.hostile_requests`."""

import resource
import socket
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from tests.contract.api_server import ApiServer, api_server
from tests.hostile_bodies import HOSTILE
from tests.redis_server import until

IDLE = (2100, 6000)
PROBES = 50
JSON = {"Content-Type": "application/json"}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory() as folder:
        with api_server(Path(folder)) as server:
            print(f"empty: {_probe(server)}; {_memory(server)} MiB")
            for connections in IDLE:
                print(f"{connections} idle: {_idle(server, connections)}; {_memory(server)} MiB")
            for name, body in HOSTILE.items():
                print(f"| {name} | {_refused(server, body)} |")
            print(f"{_memory(server)} MiB at the end")
        with api_server(Path(folder)) as server:
            print(f"workers gone {_orphans(server):.2f} s after their master was killed")


def _workers(server: ApiServer) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def _memory(server: ApiServer) -> list[int]:
    return [worker.memory_info().rss >> 20 for worker in _workers(server)]


def _probe(server: ApiServer) -> str:
    seconds = []
    for _ in range(PROBES):
        start = time.perf_counter()
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        seconds.append(time.perf_counter() - start)
    return f"median {statistics.median(seconds) * 1000:.0f} ms, worst {max(seconds) * 1000:.0f} ms"


def _idle(server: ApiServer, connections: int) -> str:
    opened = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(connections)]
    try:
        return _probe(server)
    finally:
        for client in opened:
            client.close()


def _refused(server: ApiServer, body: bytes) -> str:
    workers = _workers(server)
    for worker in workers:  # the peak starts over, see proc(5)
        Path(f"/proc/{worker.pid}/clear_refs").write_text("5")
    before, at_rest = _cpu(workers), [_peak(worker) for worker in workers]
    response = httpx.post(f"{server.url}/api/jobs", content=body, headers=JSON, trust_env=False, timeout=60)
    seconds = _cpu(workers) - before
    peaks = [_peak(worker) - rest for worker, rest in zip(workers, at_rest, strict=True)]
    return f"{response.status_code} | {seconds:.2f} s | {max(peaks)} MiB | {len(response.content)}"


def _cpu(workers: list[psutil.Process]) -> float:
    return sum(sum(worker.cpu_times()[:2]) for worker in workers)


def _peak(worker: psutil.Process) -> int:
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def _orphans(server: ApiServer) -> float:
    workers = _workers(server)
    server.process.kill()
    server.process.wait()
    return until(lambda: not any(map(_runs, workers)), 60)


def _runs(worker: psutil.Process) -> bool:
    return worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE


if __name__ == "__main__":
    main()
