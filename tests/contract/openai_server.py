"""A small OpenAI-compatible server on the loopback that answers as a test says."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
MODELS = [{"id": "org/m:8b", "object": "model", "created": 5, "owned_by": "vllm"}]


class Scripted:
    """Behaviour of the server, and the requests that it received.

    `status` and `body` replace an answer, `events` are its stream. A prompt in `failing` is answered 503 the first
    time, once two others are answered.
    """

    def __init__(self) -> None:
        self.url = ""
        self.models: Any = {"object": "list", "data": MODELS}
        self.headers: dict[str, str] = {}
        self.status = 200
        self.body: Any = None
        self.events: list[str] = answer("Hi")
        self.failing: set[str] = set()
        self.answered = threading.Semaphore(0)
        self.listing = threading.Event()
        self.listing.set()
        self.going_on = threading.Event()
        self.gone = threading.Event()
        self.heard: list[tuple[str, dict[str, str], Json]] = []


def event(**fields: Any) -> str:
    return json.dumps(fields)


def answer(*pieces: str, finish_reason: str = "stop") -> list[str]:
    """The events of one answer in these pieces."""
    chunks = [event(choices=[{"index": 0, "text": piece, "finish_reason": None}]) for piece in pieces]
    end = event(choices=[{"index": 0, "text": "", "finish_reason": finish_reason}])
    usage = {"prompt_tokens": 4, "completion_tokens": len(pieces), "total_tokens": 4 + len(pieces)}
    return [*chunks, end, event(choices=[], usage=usage), "[DONE]"]


FOREVER = "forever"
"""Stands among the events: from here on a piece comes every few milliseconds, until the client has gone."""

HOLD = "hold"
"""Stands among the events: here the stream waits for `going_on`."""


def _handler(script: Scripted) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.heard.append((self.path, dict(self.headers), {}))
            script.listing.wait()
            self._json(200, script.models, script.headers)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.heard.append((self.path, dict(self.headers), body))
            if body.get("prompt") in script.failing:
                script.failing.remove(body["prompt"])
                for _ in range(2):
                    script.answered.acquire(timeout=10)
                self._json(503, {"error": {"message": "busy"}}, {})
                return
            if script.status != 200:
                self._json(script.status, script.body, {})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                for data in script.events:
                    self._event(data)
                script.answered.release()
            except (BrokenPipeError, ConnectionResetError):
                script.gone.set()

        def _event(self, data: str) -> None:
            if data == HOLD:
                script.going_on.wait(30)
                return
            while data == FOREVER:
                self._event(answer("x")[0])
                script.going_on.wait(0.01)
            self.wfile.write(f": comment\n\ndata: {data}\n\n".encode())
            self.wfile.flush()

        def _json(self, status: int, value: Any, headers: dict[str, str]) -> None:
            content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def openai_server() -> Iterator[Scripted]:
    """The server, until the end of the context."""
    script = Scripted()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script))
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        script.listing.set()
        script.going_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
