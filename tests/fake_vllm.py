"""Stand-in for `vllm serve`: its endpoints on a socket, with tokens that are computed from the prompt.

The file `fake.json` next to the model's folder (`FOLDER.json`) says how it behaves, see `Behaviour`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any


@dataclass(kw_only=True)
class Behaviour:
    """Attributes of one server.

    Attributes:
        start_seconds: Time until it is healthy.
        fails: It prints a reason and ends with status 3 instead.
        token_seconds: Time for each token.
        crash_on: A prompt with this token kills it.
        break_on: A prompt with this token, and each one after it, is answered with an error; it is not healthy from then on.
        stray: A token that it writes first, against any grammar.
        heard: File that gets a JSON line for each request, and one with the ids of its processes.
    """

    start_seconds: float = 0.0
    fails: bool = False
    token_seconds: float = 0.0
    crash_on: int | None = None
    break_on: int | None = None
    stray: int | None = None
    heard: str = os.devnull


def next_token(ids: list[int], *, shift: int, rows: int) -> int:
    """Returns the token after these, of a model with an adapter that shifts it."""
    return 3 + (7 * sum(ids) + len(ids) + shift) % (rows - 3)


def shift_of(adapter: Path | None) -> int:
    """Returns what an adapter adds: its alpha."""
    if adapter is None:
        return 0
    return int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["lora_alpha"])


class Server(ThreadingMixIn, UnixStreamServer):
    """The server and its state."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, socket: str, model: Path, behaviour: Behaviour) -> None:
        super().__init__(socket, Handler)
        self.behaviour = behaviour
        self.rows = int(json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"])
        self.healthy_at = time.monotonic() + behaviour.start_seconds
        self.adapters: dict[str, Path] = {}
        self.is_broken = False

    def hear(self, path: str, value: Any) -> None:
        """Notes a request."""
        with Path(self.behaviour.heard).open("a", encoding="utf-8") as file:
            file.write(json.dumps([path, value]) + "\n")


class Handler(BaseHTTPRequestHandler):
    """vLLM's endpoints, as far as the engine uses them."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        healthy = time.monotonic() >= self.server.healthy_at and not self.server.is_broken
        self._answer(200 if healthy else 503, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.hear(self.path, body)
        adapters = self.server.adapters
        match self.path:
            case "/v1/load_lora_adapter" if not Path(body["lora_path"], "adapter_config.json").is_file():
                self._answer(404, {"error": {"message": "No adapter found."}})
            case "/v1/load_lora_adapter":
                adapters[body["lora_name"]] = Path(body["lora_path"])
                self._answer(200, {})
            case "/v1/unload_lora_adapter":
                del adapters[body["lora_name"]]
                self._answer(200, {})
            case "/v1/completions" if body["model"] not in {"model", *adapters}:
                self._answer(404, {"error": {"message": f"The model {body['model']} does not exist."}})
            case "/v1/completions":
                self._complete(body)
            case _:
                self._answer(404, {})

    def _complete(self, body: dict[str, Any]) -> None:
        behaviour, rows = self.server.behaviour, self.server.rows
        if behaviour.crash_on in body["prompt"]:
            write("fatal: out of memory on the device")
            os.kill(os.getpid(), signal.SIGKILL)
        self.server.is_broken |= behaviour.break_on in body["prompt"]
        if self.server.is_broken:
            self._answer(500, {"error": {"message": "EngineCore encountered an issue."}})
            return
        shift = shift_of(self.server.adapters.get(body["model"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        ids = list(body["prompt"])
        for position in range(body["max_tokens"]):
            time.sleep(behaviour.token_seconds)
            token = next_token(ids, shift=shift, rows=rows)
            if position == 0 and behaviour.stray is not None:
                token = behaviour.stray
            echoed = ids if body.get("echo") and position == 0 else []
            ended = "stop" if token in body["stop_token_ids"] else None
            if ended is None and position + 1 == body["max_tokens"]:
                ended = "length"
            choice = {"index": 0, "text": "", "token_ids": [token], "finish_reason": ended}
            if "logprobs" in body:
                choice["logprobs"] = logprobs([*echoed, token], first=bool(echoed), top=body["logprobs"])
            self._send(json.dumps({"choices": [choice]}))
            ids.append(token)
            if ended:
                break
        self._send("[DONE]")
        self.close_connection = True

    def _send(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()

    def _answer(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        return "socket"

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""


def logprobs(ids: list[int], *, first: bool, top: int) -> dict[str, Any]:
    """Returns log-probabilities by token: minus a hundredth of the id, and of the `top` tokens from 1 on."""
    values: list[float | None] = [-token / 100 for token in ids]
    tops: list[dict[str, float] | None] = [
        {f"token_id:{other}": -other / 100 for other in [token, *range(1, top + 1)]} for token in ids
    ]
    if first:
        values[0], tops[0] = None, None
    return {
        "tokens": [f"token_id:{token}" for token in ids],
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": [0] * len(ids),
    }


def write(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--uds", required=True)
    known, others = parser.parse_known_args()
    file = known.model.with_name(f"{known.model.name}.json")
    behaviour = Behaviour(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else Behaviour()
    write(f"loading {known.model.name}")
    if behaviour.fails:
        write("ValueError: the model is too large for this device")
        return 3
    core = subprocess.Popen(
        ["sleep", "600"]
    )  # vLLM's engine is a process of its own, which outlives a killed server
    server = Server(known.uds, known.model, behaviour)
    server.hear(
        "start", {"arguments": others, "pids": [os.getpid(), core.pid], "environment": {**os.environ}}
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
