"""`graftwerk chain`: submission in order, progress, outcome."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from graftwerk import chain, submission

from tests.client_service import Run, Service

FILE = """\
jobs:
  - {name: base, kind: convert, source: llama, target: hf}
  - {name: both, kind: merge, base: hf, adapters: [zh], target: ab}
  - {name: check, kind: verify, model: ab}
"""


class Jobs:
    """A service that ends each job with the status of its target or model."""

    def __init__(self, **ends: str) -> None:
        self.ends = ends
        self.failures: list[httpx.Response | Exception] = []
        self.put: list[tuple[str, dict[str, Any]]] = []
        self.canceled: list[str] = []

    def state(self, job_id: str, status: str | None = None) -> dict[str, Any]:
        request = dict(self.put)[job_id]
        end = self.ends.get(request.get("target") or request["model"], "succeeded")
        error = {"code": "x", "message": "It failed."} if (status or end) == "failed" else None
        return {
            "id": job_id,
            "kind": request["kind"],
            "status": status or end,
            "request": request,
            "error": error,
        }

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.split("/")[2:]
        if request.url.params.get("dry_run"):
            return httpx.Response(200, json={"kind": "convert", "output_bytes": 2_000_000, "warnings": []})
        if request.method == "PUT":
            if self.failures:
                failure = self.failures.pop(0)
                if isinstance(failure, Exception):
                    raise failure
                return failure
            self.put.append((path[1], json.loads(request.content)))
            return httpx.Response(202, json=self.state(path[1], "queued"))
        if path[-1] == "cancel":
            self.canceled.append(path[1])
            return httpx.Response(202, json=self.state(path[1], "canceled"))
        if path == ["events"]:
            events = "".join(
                f"event: status\ndata: {json.dumps(self.state(job_id))}\n\n" for job_id, _ in self.put
            )
            return httpx.Response(200, text=events, headers={"Content-Type": "text/event-stream"})
        return httpx.Response(200, json=self.state(path[1]))


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, service: Service) -> Jobs:
    """A service that takes jobs, in place of the usual one; nothing waits between attempts."""
    found = Jobs()
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(found))
    monkeypatch.setattr(chain, "PAUSE_SECONDS", 0.0)
    return found


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A chain of three jobs."""
    path = tmp_path / "chain.yaml"
    path.write_text(FILE, encoding="utf-8")
    return str(path)


def test_jobs_are_submitted_after_those_that_they_need_and_followed(jobs: Jobs, run: Run, file: str) -> None:
    result = run("chain", file)
    assert result.exit_code == 0, result.output
    ids = [job_id for job_id, _ in jobs.put]
    assert len(set(ids)) == 3
    assert [request.get("after") for _, request in jobs.put] == [None, [ids[0]], [ids[1]]]
    assert "base: convert → hf  queued" in result.stderr
    assert "check: verify with ab  succeeded" in result.stderr
    assert result.stdout.splitlines() == [
        "convert → hf succeeded.",
        "merge → ab succeeded.",
        "verify with ab succeeded.",
    ]


def test_the_exit_code_is_that_of_the_first_failure(jobs: Jobs, run: Run, file: str) -> None:
    jobs.ends = {"hf": "canceled", "ab": "failed"}
    result = run("chain", file)
    assert result.exit_code == 130
    assert "base: convert → hf: canceled" in result.stderr
    assert "error: both: merge → ab: It failed. [x]" in result.stderr
    jobs.ends = {"ab": "failed"}
    assert run("chain", file).exit_code == 1


def test_a_refused_job_cancels_those_before_it(jobs: Jobs, run: Run, file: str) -> None:
    jobs.failures = []
    accept = jobs.__call__

    class Refusing(Jobs):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if request.method == "PUT" and len(jobs.put) == 2:
                return httpx.Response(422, json={"code": "c", "detail": "No.", "hint": "Do."})
            return accept(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(Refusing()))
        result = run("chain", file)
    assert result.exit_code == 3
    assert "The 2 jobs submitted before it were canceled." in result.stderr
    assert result.stderr.splitlines()[-2:] == ["error: check (line 4): No.", "       Do."]
    assert jobs.canceled == [job_id for job_id, _ in reversed(jobs.put)]


def test_a_submission_that_the_network_lost_is_sent_again_under_the_same_id(
    jobs: Jobs, run: Run, file: str
) -> None:
    jobs.failures = [httpx.ReadError("broken"), httpx.Response(503, json={})]
    assert run("chain", file).exit_code == 0
    assert len(jobs.put) == 3
    jobs.failures = [httpx.ConnectError("refused") for _ in range(5)]
    assert run("chain", file).exit_code == 4


def test_no_wait_prints_the_ids_with_their_names(jobs: Jobs, run: Run, file: str) -> None:
    result = run("chain", file, "--no-wait")
    ids = [job_id for job_id, _ in jobs.put]
    assert result.stdout == f"{ids[0]}  base\n{ids[1]}  both\n{ids[2]}  check\n"
    documents = json.loads(run("chain", file, "--no-wait", "--json").stdout)
    assert [job["status"] for job in documents] == ["queued"] * 3


def test_a_dry_run_submits_nothing_and_plans_what_can_be_planned(jobs: Jobs, run: Run, file: str) -> None:
    result = run("chain", file, "--dry-run")
    assert result.exit_code == 0
    assert jobs.put == []
    assert "both: merge after base" in result.stdout
    assert "2.0 MB" in result.stdout
    plans = json.loads(run("chain", file, "--dry-run", "--json").stdout)
    assert [(plan["name"], plan["after"], plan["plan"] is None) for plan in plans] == [
        ("base", [], False),
        ("both", ["base"], True),
        ("check", ["both"], True),
    ]


def test_json_prints_the_ended_jobs_alone(jobs: Jobs, run: Run, file: str) -> None:
    documents = json.loads(run("chain", file, "--json").stdout)
    assert [(job["kind"], job["status"]) for job in documents] == [
        ("convert", "succeeded"), ("merge", "succeeded"), ("verify", "succeeded"),
    ]  # fmt: skip


def test_an_invalid_file_ends_with_2_before_anything_is_sent(jobs: Jobs, run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("jobs:\n  - {name: a}\n")
    result = run("chain", str(tmp_path / "c.yaml"))
    assert result.exit_code == 2
    assert "line 2: The job has no `kind`." in result.stderr
    assert jobs.put == []


def test_only_the_last_job_of_a_chain_names_what_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from graftwerk.models import Job

    seen: list[bool] = []
    monkeypatch.setattr(submission, "print_result", lambda job, *, verbose, with_next: seen.append(with_next))
    jobs = [Job.model_validate({"id": name, "kind": "x", "status": "succeeded"}) for name in "abc"]
    submission.finish_all(jobs, as_json=False)
    assert seen == [False, False, True]
