"""A fake service for tests of the client's commands, behind httpx's mock transport."""

import json
from collections.abc import Callable
from typing import Any

import httpx
from typer.testing import Result

ID = "11111111-2222-3333-4444-555555555555"

Run = Callable[..., Result]
"""Runs the `graftwerk` command with these arguments."""


DELIVERY: dict[str, Any] = {
    "id": "msg_1", "event": "job.failed", "url": "https://example.org/hook", "status": "failed",
    "created_at": "2026-01-02T03:04:05.678Z", "next_attempt_at": None,
    "attempts": [{"at": "2026-01-02T03:04:06Z", "seconds": 0.5, "status_code": 500, "error": None}],
}  # fmt: skip
"""A delivery as the API returns it."""


LINEAGE = {
    "operation": "merge",
    "inputs": [{"role": "base", "name": "a"}, {"role": "adapter", "name": "b", "scale": 1}],
}
"""Lineage of the model of the fake service."""


class Service:
    """Fake API: records the requests and gives every job the same outcome."""

    def __init__(self) -> None:
        self.status = "succeeded"
        self.result: dict[str, Any] = {"name": "ab", "size_bytes": 1234567}
        self.error: dict[str, str] | None = None
        self.refusal: httpx.Response | None = None
        self.pieces: list[dict[str, Any]] = []
        self.seen: list[httpx.Request] = []

    def job(self, status: str) -> dict[str, Any]:
        ended = status in ("succeeded", "failed", "canceled")
        request = self.body if self.seen and self.seen[0].content else {"target": "ab"}
        outcome = {"result": self.result if status == "succeeded" else None, "error": self.error}
        return {"id": ID, "kind": request.get("kind", "merge"), "status": status, "request": request} | (
            outcome if ended else {}
        )

    @property
    def body(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.seen[0].content)
        return content

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if self.refusal is not None:
            return self.refusal
        if request.url.path.startswith("/api/models"):
            return self.of_models(request)
        if "/deliveries" in request.url.path:
            return self.of_deliveries(request)
        return self.of_jobs(request)

    def of_deliveries(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json={**DELIVERY, "status": "pending", "attempts": []})
        return httpx.Response(200, json={"deliveries": [DELIVERY]})

    def of_models(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(204)
        one = {"name": "ab", "kind": "adapter", "size_bytes": 5000, "lineage": LINEAGE}
        return httpx.Response(200, json={"models": [one]} if request.url.path == "/api/models" else one)

    def of_jobs(self, request: httpx.Request) -> httpx.Response:
        if request.url.params.get("dry_run"):
            return httpx.Response(
                200, json={"output_bytes": 2000000, "warnings": ["the disk is nearly full"]}
            )
        match request.url.path.rpartition("/")[2], request.method:
            case "events", _:
                ended = json.dumps(self.job(self.status))
                tokens = "".join(f"event: token\ndata: {json.dumps(piece)}\n\n" for piece in self.pieces)
                return httpx.Response(
                    200,
                    text=f"{tokens}event: status\ndata: {ended}\n\n",
                    headers={"Content-Type": "text/event-stream"},
                )
            case "log" | "results", _:
                found = request.url.params.get("format")
                return httpx.Response(200, text=f"{found} of it" if found else "reading\nwriting\n")
            case "jobs", "GET":
                return httpx.Response(200, json={"jobs": [self.job("running")], "next": None})
            case "cancel", _:
                return httpx.Response(202, json=self.job("canceled"))
        return httpx.Response(202, json=self.job("queued"))


def generated(*outputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Returns the result of a generate job with these outputs, each completed by what it lacks."""
    complete = [{"prompt": "p", **output} for output in outputs]
    figures = {"seconds": 1.0, "tokens_per_second": 2.0, "device": "cpu", "dtype": "float32"}
    return {"outputs": complete, **figures, **more}
