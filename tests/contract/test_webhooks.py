"""Webhooks: signed messages of ends of jobs, sent at least once, to public addresses, within bounded time."""

import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr
from redis import Redis
from standardwebhooks import Webhook

from api import create_app
from services.errors import InvalidSettings
from services.jobs import deliveries, webhook_client
from services.jobs.deliveries import take_due
from services.jobs.queue import JobQueue
from services.jobs.webhook_client import is_public, sender_of
from services.settings import Settings
from tests.api_client import Json, import_request, problem
from worker.deliveries import DeliveryLoop

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

Respond = Callable[[BaseHTTPRequestHandler], None]


def answer(status: int, body: bytes = b"", **headers: str) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


@dataclass
class Receiver:
    """A server that keeps what it receives, and answers in turn; the last answer is repeated."""

    port: int = 0
    answers: list[Respond] = field(default_factory=lambda: [answer(204)])
    received: list[tuple[str, dict[str, str], str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?x=1"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            kept.received.append((self.path, {name.lower(): v for name, v in self.headers.items()}, body))
            (kept.answers.pop(0) if len(kept.answers) > 1 else kept.answers[0])(self)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kept.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def allowed(settings: Settings) -> Settings:
    """Settings with a secret, and with private addresses allowed."""
    return settings.model_copy(update={"webhook_secret": SecretStr(SECRET), "webhook_allow_private": True})


@dataclass
class Hooks:
    """A service with webhooks: its API, its queue, and its deliveries on command."""

    api: FlaskClient
    queue: JobQueue
    settings: Settings

    def submit(self, url: str, target: str = "a", **webhook: Any) -> str:
        body = import_request(self.settings.models_dir, target, webhook={"url": url, **webhook})
        response = self.api.post("/api/jobs", json=body)
        assert response.status_code == 202, response.text
        job_id: str = response.get_json()["id"]
        return job_id

    def deliver(self) -> None:
        """Sends what is due once."""
        sender = sender_of(self.settings)
        assert sender is not None
        with ThreadPoolExecutor(4) as pool:
            DeliveryLoop(self.queue.redis, sender).round(pool)

    def deliveries(self, job_id: str) -> list[Json]:
        found: list[Json] = self.api.get(f"/api/jobs/{job_id}/deliveries").get_json()["deliveries"]
        return found


@pytest.fixture
def hooks(redis: Redis, allowed: Settings) -> Hooks:
    queue = JobQueue(redis, allowed)
    return Hooks(create_app(allowed, queue=queue).test_client(), queue, allowed)


def test_the_end_of_a_job_is_sent_signed(hooks: Hooks, receiver: Receiver) -> None:
    job_id = hooks.submit(receiver.url)
    hooks.deliver()
    assert receiver.received == [], "the job has not ended"
    hooks.queue.cancel(job_id)
    hooks.deliver()
    ((path, headers, body),) = receiver.received
    assert path == "/hook?x=1"
    assert headers["content-type"] == "application/json"
    message = Webhook(SECRET).verify(body, headers)
    assert (message["type"], message["data"]["id"], message["data"]["status"]) == (
        "job.canceled",
        job_id,
        "canceled",
    )
    (delivery,) = hooks.deliveries(job_id)
    assert (delivery["id"], delivery["status"]) == (headers["webhook-id"], "delivered")
    assert [attempt["status_code"] for attempt in delivery["attempts"]] == [204]
    hooks.deliver()
    assert len(receiver.received) == 1


def test_only_the_chosen_ends_are_sent(hooks: Hooks, receiver: Receiver) -> None:
    job_id = hooks.submit(receiver.url, events=["succeeded", "failed"])
    hooks.queue.cancel(job_id)
    hooks.deliver()
    assert receiver.received == []
    assert hooks.deliveries(job_id) == []


def test_a_failed_attempt_is_repeated_with_the_same_id(
    hooks: Hooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "RETRY_SECONDS", (0, 0, 0))
    receiver.answers = [answer(500), answer(302, Location=receiver.url), answer(200)]
    job_id = hooks.submit(receiver.url)
    hooks.queue.cancel(job_id)
    for _ in range(4):
        hooks.deliver()
    (delivery,) = hooks.deliveries(job_id)
    assert [attempt["status_code"] for attempt in delivery["attempts"]] == [500, 302, 200]
    assert delivery["status"] == "delivered"
    assert {headers["webhook-id"] for _, headers, _ in receiver.received} == {delivery["id"]}
    assert len({body for _, _, body in receiver.received}) == 1


def test_attempts_end_and_pauses_grow(
    hooks: Hooks, receiver: Receiver, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.answers = [answer(503)]
    job_id = hooks.submit(receiver.url)
    hooks.queue.cancel(job_id)
    pauses = []
    for _ in range(len(deliveries.RETRY_SECONDS) + 1):
        hooks.deliver()
        (delivery,) = hooks.deliveries(job_id)
        if delivery["next_attempt_at"] is not None:
            pauses.append(round(delivery["next_attempt_at"] - time.time()))
        for member in redis.zrange(deliveries.DUE_KEY, 0, -1):
            redis.zadd(deliveries.DUE_KEY, {member: 1})
    assert pauses == pytest.approx(deliveries.RETRY_SECONDS, abs=2)
    assert delivery["status"] == "failed"
    assert redis.zcard(deliveries.DUE_KEY) == 0


def test_a_receiver_that_is_gone_is_not_asked_again(hooks: Hooks, receiver: Receiver) -> None:
    receiver.answers = [answer(410)]
    job_id = hooks.submit(receiver.url)
    hooks.queue.cancel(job_id)
    hooks.deliver()
    assert hooks.deliveries(job_id)[0]["status"] == "failed"


def test_a_delivery_that_a_killed_process_has_taken_is_due_again(
    hooks: Hooks, receiver: Receiver, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "CLAIM_SECONDS", 0.2)
    hooks.queue.cancel(hooks.submit(receiver.url))
    assert len(take_due(redis, 10)) == 1
    assert take_due(redis, 10) == [], "another process does not take it too"
    threading.Event().wait(0.25)
    hooks.deliver()
    assert len(receiver.received) == 1


def test_private_addresses_are_refused(hooks: Hooks, receiver: Receiver) -> None:
    public_only = hooks.settings.model_copy(update={"webhook_allow_private": False})
    named = hooks.submit(f"http://localhost:{receiver.port}/")
    hooks.queue.cancel(named)
    hooks.settings = public_only
    hooks.deliver()
    assert receiver.received == []
    (delivery,) = hooks.deliveries(named)
    assert delivery["status"] == "failed"
    assert "not public" in delivery["attempts"][0]["error"]
    api = create_app(public_only, queue=JobQueue(hooks.queue.redis, public_only)).test_client()
    body = import_request(public_only.models_dir, "b", webhook={"url": receiver.url})
    problem(api.post("/api/jobs", json=body), 422, "invalid_request")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d822", True),
        ("2002:7f00:1::", False),
    ],
)
def test_addresses_are_public_or_not(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_a_name_is_resolved_once_and_its_address_used(
    hooks: Hooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *arguments: Any, **more: Any) -> Any:
        if host != "hook.example":
            return real(host, port, *arguments, **more)
        asked.append(host)
        return real("127.0.0.1" if len(asked) == 1 else "192.0.2.1", port, **more)

    monkeypatch.setattr(webhook_client.socket, "getaddrinfo", resolve)
    hooks.queue.cancel(hooks.submit(f"http://hook.example:{receiver.port}/"))
    hooks.deliver()
    assert asked == ["hook.example"]
    assert receiver.received[0][1]["host"] == f"hook.example:{receiver.port}"


def drip(handler: BaseHTTPRequestHandler) -> None:
    for _ in range(200):
        handler.wfile.write(b"H")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize("slow", [drip, lambda _: time.sleep(3)], ids=["a byte at a time", "silent"])
def test_a_slow_receiver_is_left(
    hooks: Hooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, slow: Respond
) -> None:
    monkeypatch.setattr(webhook_client, "ATTEMPT_SECONDS", 0.5)
    receiver.answers = [slow]
    job_id = hooks.submit(receiver.url)
    hooks.queue.cancel(job_id)
    hooks.deliver()
    (attempt,) = hooks.deliveries(job_id)[0]["attempts"]
    assert attempt["status_code"] is None
    assert attempt["seconds"] < 2.5


def test_a_large_response_is_not_read(hooks: Hooks, receiver: Receiver) -> None:
    receiver.answers = [answer(200, b"x" * 10_000_000)]
    job_id = hooks.submit(receiver.url)
    hooks.queue.cancel(job_id)
    hooks.deliver()
    assert "longer than 65536 bytes" in hooks.deliveries(job_id)[0]["attempts"][0]["error"]


def test_a_delivery_is_sent_again_on_request(hooks: Hooks, receiver: Receiver) -> None:
    job_id = hooks.submit(receiver.url)
    hooks.queue.cancel(job_id)
    (delivery,) = hooks.deliveries(job_id)
    path = f"/api/jobs/{job_id}/deliveries/{delivery['id']}/redeliver"
    problem(hooks.api.post(path), 409, "delivery_pending")
    hooks.deliver()
    assert hooks.api.post(path).status_code == 202
    hooks.deliver()
    assert [headers["webhook-id"] for _, headers, _ in receiver.received] == [delivery["id"]] * 2
    problem(hooks.api.post(path.replace("msg_", "gone_")), 404, "delivery_not_found")
    problem(hooks.api.get(f"/api/jobs/{uuid4()}/deliveries"), 404, "job_not_found")


def test_deleting_the_job_deletes_its_deliveries(hooks: Hooks, receiver: Receiver, redis: Redis) -> None:
    job_id = hooks.submit(receiver.url)
    hooks.queue.cancel(job_id)
    hooks.queue.delete(job_id)
    hooks.deliver()
    assert receiver.received == []
    assert list(redis.scan_iter("graftwerk:deliver*")) == []


def test_a_large_result_is_left_out(hooks: Hooks) -> None:
    job = hooks.queue.get(hooks.submit("https://example.org/"))
    large = job.model_copy(
        update={"metadata": {str(n): "x" * 500 for n in range(100)}, "status": "succeeded"}
    )
    assert json.loads(deliveries.message(large))["data"]["result"] is None
    assert len(deliveries.message(job)) < 5000


def test_without_a_secret_a_webhook_is_refused(redis: Redis, settings: Settings) -> None:
    api = create_app(settings, queue=JobQueue(redis, settings)).test_client()
    body = import_request(settings.models_dir, webhook={"url": "https://example.org/"})
    for path in ("/api/jobs", "/api/jobs?dry_run=true"):
        assert "no secret" in problem(api.post(path, json=body), 422, "invalid_request")["detail"]


def test_a_webhook_is_no_part_of_what_makes_requests_equal(hooks: Hooks) -> None:
    body = import_request(hooks.settings.models_dir)
    path = f"/api/jobs/{uuid4()}"
    assert hooks.api.put(path, json=body).status_code == 202
    again = hooks.api.put(path, json={**body, "webhook": {"url": "https://example.org/"}})
    assert again.status_code == 200


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/", "example.org", "https://", "https://a:b@example.org/", "http://x/#y", "http://x/ y", "http://x:99999/",
     "http://é/", ""],
)  # fmt: skip
def test_a_malformed_address_is_refused(hooks: Hooks, url: str) -> None:
    body = import_request(hooks.settings.models_dir, webhook={"url": url})
    problem(hooks.api.post("/api/jobs", json=body), 422, "invalid_request")


@pytest.mark.parametrize("secret", ["whsec_", "not base64 §", "whsec_a"])
def test_a_malformed_secret_is_refused(settings: Settings, secret: str) -> None:
    with pytest.raises(InvalidSettings, match="WEBHOOK_SECRET"):
        sender_of(settings.model_copy(update={"webhook_secret": SecretStr(secret)}))
