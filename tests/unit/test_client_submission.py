"""Submission by commands: options of all job commands, output and exit codes."""

import json
from typing import Any

import httpx
import pytest
from graftwerk.commands import app
from graftwerk.job_handle import JobHandle
from typer.testing import CliRunner

from tests.client_service import ID, Run, Service


def test_a_job_waits_for_the_jobs_named(service: Service, run: Run) -> None:
    run("convert", "a", "b", "--after", "j1", "--after", "j2")
    assert service.body["after"] == ["j1", "j2"]


def test_no_wait_prints_the_id_and_does_not_follow(service: Service, run: Run) -> None:
    result = run("convert", "a", "b", "--no-wait")
    assert (result.exit_code, result.stdout, len(service.seen)) == (0, f"{ID}\n", 1)


def test_json_prints_the_ended_job_and_nothing_else(run: Run) -> None:
    job = json.loads(run("convert", "a", "b", "--json").stdout)
    assert (job["id"], job["status"], job["result"]["name"]) == (ID, "succeeded", "ab")


def test_a_dry_run_prints_the_plan_and_its_warnings(run: Run) -> None:
    result = run("convert", "a", "b", "--dry-run")
    assert result.exit_code == 0
    assert "2.0 MB" in result.stdout
    assert "warning: the disk is nearly full" in result.stdout
    assert json.loads(run("convert", "a", "b", "--dry-run", "--json").stdout)["output_bytes"] == 2000000


def test_a_failed_job_ends_with_1_and_two_lines(service: Service, run: Run) -> None:
    service.status = "failed"
    service.error = {"code": "disk_full", "message": "3 GB are missing", "hint": "delete a model"}
    result = run("convert", "a", "b")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-2:] == ["error: 3 GB are missing [disk_full]", "       delete a model"]


def test_a_canceled_job_ends_with_130(service: Service, run: Run) -> None:
    service.status = "canceled"
    assert run("convert", "a", "b").exit_code == 130


def test_a_refusal_ends_with_3_and_two_lines(service: Service, run: Run) -> None:
    problem = {"code": "model_not_found", "detail": "no model [a]", "hint": "import it"}
    service.refusal = httpx.Response(404, json=problem)
    result = run("convert", "a", "b")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines() == ["error: no model [a]", "       import it"]


def test_a_missing_service_ends_with_4(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(refuse))
    assert run("models").exit_code == 4


@pytest.mark.parametrize("url", ["nonsense", "http://[", "ftp://x"])
def test_an_invalid_url_ends_with_4_and_no_traceback(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    result = CliRunner().invoke(app, ["models", "--url", url])
    assert result.exit_code == 4
    assert result.stderr.startswith("error: ")


def test_the_url_and_the_key_come_from_the_environment(service: Service, run: Run) -> None:
    run("models", env={"GRAFTWERK_URL": "http://elsewhere.test:1", "GRAFTWERK_API_KEY": "k"})
    assert str(service.seen[0].url) == "http://elsewhere.test:1/api/models"
    assert service.seen[0].headers["Authorization"] == "Bearer k"


def test_ctrl_c_without_a_terminal_leaves_the_job_running(
    monkeypatch: pytest.MonkeyPatch, service: Service, run: Run
) -> None:
    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(JobHandle, "events", interrupted)
    result = run("convert", "a", "b")
    assert result.exit_code == 130
    assert f"Detached; the job continues. Follow it with `graftwerk jobs watch {ID}`." in result.stderr
    assert [request.url.path for request in service.seen] == ["/api/jobs"]


def test_ctrl_c_on_a_terminal_cancels_when_told_to(
    monkeypatch: pytest.MonkeyPatch, service: Service, run: Run
) -> None:
    events, interrupts = JobHandle.events, iter([True])

    def once_interrupted(handle: Any, timeout: Any) -> Any:
        if next(interrupts, False):
            raise KeyboardInterrupt
        return events(handle, timeout)

    monkeypatch.setattr(JobHandle, "events", once_interrupted)
    monkeypatch.setattr("graftwerk.interruption.ask", lambda _: "cancel")
    service.status = "canceled"
    assert run("convert", "a", "b").exit_code == 130
    assert f"/api/jobs/{ID}/cancel" in [request.url.path for request in service.seen]


def test_a_check_that_did_not_pass_ends_with_an_exit_code(service: Service, run: Run) -> None:
    difference = {"tensor": "lm_head.weight", "message": "is missing"}
    service.result = {"model": "ab", "against": ["manifest"], "passed": False, "differences": [difference]}
    result = run("verify", "ab")
    assert result.exit_code == 1
    assert "The check did not pass: 1 difference." in result.stderr
    assert "lm_head.weight" in result.stdout
