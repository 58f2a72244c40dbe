"""`graftwerk jobs` and `graftwerk models`."""

import json

from tests.client_service import ID, Run, Service


def test_jobs_lists_with_filters(service: Service, run: Run) -> None:
    result = run("jobs", "--status", "running", "--kind", "merge", "--model", "a", "--limit", "5")
    assert dict(service.seen[0].url.params) == {
        "status": "running",
        "kind": "merge",
        "model": "a",
        "limit": "5",
    }
    assert ID in result.stdout
    assert "merge → ab" in result.stdout


def test_jobs_watch_ends_with_the_outcome(service: Service, run: Run) -> None:
    service.status = "failed"
    assert run("jobs", "watch", ID).exit_code == 1


def test_jobs_cancel_retry_and_log_send_requests_to_their_paths(service: Service, run: Run) -> None:
    assert run("jobs", "cancel", ID).exit_code == 0
    assert run("jobs", "retry", ID, "--no-wait").stdout == f"{ID}\n"
    assert run("jobs", "log", ID).stdout == "reading\nwriting\n"
    assert [(request.method, request.url.path) for request in service.seen] == [
        ("POST", f"/api/jobs/{ID}/cancel"),
        ("POST", f"/api/jobs/{ID}/retry"),
        ("GET", f"/api/jobs/{ID}/log"),
    ]


def test_jobs_deliveries_prints_attempts_and_sends_one_again(service: Service, run: Run) -> None:
    (delivery,) = json.loads(run("jobs", "deliveries", ID).stdout)
    assert (delivery["status"], delivery["attempts"][0]["status_code"]) == ("failed", 500)
    (again,) = json.loads(run("jobs", "deliveries", ID, "--redeliver", "msg_1").stdout)
    assert again["status"] == "pending"
    assert [(request.method, request.url.path) for request in service.seen] == [
        ("GET", f"/api/jobs/{ID}/deliveries"),
        ("POST", f"/api/jobs/{ID}/deliveries/msg_1/redeliver"),
    ]


def test_models_lists_shows_and_removes(service: Service, run: Run) -> None:
    assert "5.0 kB" in run("models").stdout
    assert "made by  merge of a + b" in run("models", "show", "ab").stdout
    assert "lineage" in run("models", "show", "ab", "--verbose").stdout
    assert run("models", "rm", "ab").exit_code == 0
    assert (service.seen[3].method, service.seen[3].url.path) == ("DELETE", "/api/models/ab")
