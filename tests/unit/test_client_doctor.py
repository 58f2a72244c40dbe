"""`graftwerk doctor`: each check with its remedy."""

import json
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import httpx
import pytest
from graftwerk import doctor

from tests.client_service import Run, Service

WORKER = {
    "name": "merge-host-1-a", "queue": "merge", "state": "idle", "job_ids": [], "device": "NVIDIA H100",
    "last_heartbeat": "2020-01-01T00:00:00Z", "models": [], "memory_bytes": 64_000_000_000, "engines": {}, "processes": [],
}  # fmt: skip


class Patient:
    """A service whose parts can be made ill."""

    def __init__(self) -> None:
        self.date: str | None = None
        self.health: httpx.Response | Exception | None = None
        self.checks = {"redis": "ok", "volume": "ok", "worker-merge": "ok"}
        self.status = 200
        self.system: dict[str, Any] = {
            "workers": [WORKER | {"last_heartbeat": datetime.now(UTC).isoformat()}],
            "queues": {"merge": {"waiting": 2, "running": 1, "workers": 1}},
            "engine": {
                "setting": "vllm",
                "models": {"huggingface": "vllm", "gguf": None},
                "backend": None,
            },
            "volume": {"models": 5, "free_bytes": 50_000_000_000, "total_bytes": 100_000_000_000},
            "versions": {"graftwerk-service": version("graftwerk"), "python": "3.11.9", "redis": "8.0.1"},
        }

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/healthz":
            if isinstance(self.health, Exception):
                raise self.health
            headers = {"Date": self.date or f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT"}
            return self.health or httpx.Response(200, json={"status": "ok"}, headers=headers)
        if request.url.path == "/readyz":
            is_ready = set(self.checks.values()) == {"ok"}
            return httpx.Response(200 if is_ready else 503, json={"status": "x", "checks": self.checks})
        return httpx.Response(self.status, json=self.system)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, service: Service) -> Patient:
    """A healthy service, in place of the usual one."""
    found = Patient()
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(found))
    return found


def statuses(run: Run) -> tuple[int, dict[str, tuple[str, str, str]]]:
    """Returns the exit code, and status, finding and remedy of each check."""
    result = run("doctor", "--json")
    document = json.loads(result.stdout)
    assert document["ok"] == (result.exit_code == 0)
    return result.exit_code, {
        check["name"]: (check["status"], check["detail"], check["hint"]) for check in document["checks"]
    }


def test_a_healthy_service_is_ok_in_every_line(patient: Patient, run: Run) -> None:
    code, found = statuses(run)
    assert code == 0
    assert {status for status, _, _ in found.values()} == {"ok"}
    assert list(found) == [
        "client", "service", "clock", "redis", "volume", "worker-merge", "versions", "space", "engine", "queue merge", "worker merge",
    ]  # fmt: skip
    assert found["versions"][1] == f"graftwerk-service {version('graftwerk')}, python 3.11.9, redis 8.0.1"
    assert found["space"][1] == "5 models, 50.0 GB free of 100.0 GB"
    assert found["engine"][1] == "GENERATE_ENGINE is vllm: huggingface models by vllm, gguf models by none"
    assert found["queue merge"][1] == "2 waiting, 1 running, 1 worker"
    assert found["worker merge"][1] == "merge-host-1-a on NVIDIA H100, 64.0 GB of memory"


def test_a_workers_engines_and_their_processes_are_listed(patient: Patient, run: Run) -> None:
    worker = patient.system["workers"][0] | {
        "name": "generate-host-1-a",
        "queue": "generate",
        "device": "cpu",
    }
    worker |= {"engines": {"graftwerk": "torch 2.13.0", "vllm": ""}, "models": ["a", "g"]}
    worker |= {"processes": [{"model": "g", "engine": "llama.cpp", "pid": 71}], "memory_bytes": 0}
    patient.system["workers"] = [worker]
    assert statuses(run)[1]["worker generate"][1] == (
        "generate-host-1-a on cpu, engines graftwerk (torch 2.13.0), vllm, holds a, g (llama.cpp, process 71)"
    )


def test_the_lines_say_the_same_in_columns(patient: Patient, run: Run) -> None:
    patient.checks["redis"] = "Redis does not answer."
    lines = run("doctor").stdout.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(("ok", "failed"))][:4] == [
        ["ok", "client"], ["ok", "service"], ["ok", "clock"], ["failed", "redis"],
    ]  # fmt: skip
    index = next(number for number, line in enumerate(lines) if line.startswith("failed"))
    assert lines[index].split(maxsplit=2)[2].rstrip() == "Redis does not answer."
    assert "GRAFTWERK_REDIS_URL" in lines[index + 1]
    assert max(map(len, lines)) <= 100


def test_a_part_that_fails_ends_with_1_and_a_remedy(patient: Patient, run: Run) -> None:
    patient.checks |= {"volume": "The volume is read-only.", "worker-merge": "No merge worker is alive."}
    code, found = statuses(run)
    assert code == 1
    assert found["volume"][:2] == ("failed", "The volume is read-only.")
    assert "GRAFTWERK_MODELS_DIR" in found["volume"][2]
    assert "docker compose up -d worker-merge" in found["worker-merge"][2]


def test_a_service_that_is_down_is_said_with_what_to_do(patient: Patient, run: Run) -> None:
    patient.health = httpx.ConnectError("Connection refused")
    code, found = statuses(run)
    assert (code, list(found)) == (1, ["client", "service", "serve"])
    assert found["service"][1] == "No service responds at http://127.0.0.1:8000 (Connection refused)."
    assert "graftwerk serve" in found["service"][2]
    assert found["serve"][0] == "ok"


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>"), httpx.Response(404, json=[])])
def test_another_server_is_recognized(patient: Patient, run: Run, answer: httpx.Response) -> None:
    patient.health = answer
    code, found = statuses(run)
    assert code == 1
    assert "not as Graftwerk does" in found["service"][1]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named(patient: Patient, run: Run, status: int) -> None:
    patient.status = status
    code, found = statuses(run)
    assert code == 1
    assert "GRAFTWERK_API_KEY" in found["key"][2]


def test_another_version_little_space_and_a_silent_worker_are_warnings(patient: Patient, run: Run) -> None:
    patient.system["versions"]["graftwerk-service"] = "9.9.9"
    patient.system["volume"]["free_bytes"] = 1_000_000_000
    patient.system["workers"] = [WORKER]
    code, found = statuses(run)
    assert code == 0
    warnings = {name for name, (status, _, _) in found.items() if status == "warning"}
    assert warnings == {"versions", "space", "worker merge"}
    assert version("graftwerk") in found["versions"][1]
    assert "9.9.9" in found["versions"][1]


def test_jobs_that_no_worker_serves_fail(patient: Patient, run: Run) -> None:
    patient.system["queues"]["merge"] |= {"workers": 0}
    code, found = statuses(run)
    assert code == 1
    assert found["queue merge"][1] == "2 jobs waiting, and no worker serves the queue."


def test_a_state_that_cannot_be_read_fails(patient: Patient, run: Run) -> None:
    patient.status, patient.system = 503, {"detail": "Redis does not answer."}
    code, found = statuses(run)
    assert code == 1
    assert "Redis does not answer." in found["system"][1]


@pytest.mark.parametrize(
    ("date", "status", "detail"),
    [
        ("Thu, 01 Jan 2026 12:00:04 GMT", "ok", "equal to that of this machine"),
        ("Thu, 01 Jan 2026 12:02:00 GMT", "warning", "The service is 2 min 0 s ahead of this machine."),
        ("Thu, 01 Jan 2026 11:00:00 GMT", "warning", "The service is 1 h 0 min behind this machine."),
        ("yesterday", "warning", "The service does not say its time."),
        (None, "warning", "The service does not say its time."),
    ],
)
def test_clocks_are_compared(date: str | None, status: str, detail: str) -> None:
    found = doctor.clock(date, datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC))
    assert (found.status, found.detail) == (status, detail)


def test_an_invalid_url_ends_with_4(run: Run) -> None:
    assert run("doctor", "--url", "http://[").exit_code == 4
