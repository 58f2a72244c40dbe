"""Chats next to a merge on the same cores: the share of its idle speed that each keeps."""

import argparse
import os
import shutil
import statistics
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.contenders import ADAPTERS
from bench.job_requests import ask
from bench.service import MODEL, Service, running
from bench.small_model import make_small_model
from bench.weights import prepare

Json = dict[str, Any]
MINIATURE = "miniature"
BASE = "original"
LEAST_SUM = 0.9
LEAST_SHARE = 0.4
TURN_TOKENS = 200


class Chats:
    """Users who submit a turn after the other in a thread each, as a context manager."""

    def __init__(self, service: Service, model: str, streams: int) -> None:
        self._service = service
        self._model = model
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._talk) for _ in range(streams)]
        self._received: list[tuple[float, int]] = []

    def __enter__(self) -> "Chats":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _talk(self) -> None:
        while not self._stop.is_set():
            request = ask("what does a merge cost a chat", TURN_TOKENS, seed=None)
            for event in self._service.events(self._service.submit(request | {"model": self._model})):
                if event.event == "token":
                    self._received.append((time.time(), len(event.json()["token_ids"])))

    def tokens_per_second(self, start: float, end: float) -> float:
        """Returns the rate of the tokens that arrived between two times."""
        return sum(count for moment, count in self._received if start <= moment < end) / (end - start)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--layers", type=int, default=8, help="3.8 GB a model of 8")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--streams", type=int, default=8, help="chats at once")
    parser.add_argument("--idle-seconds", type=float, default=15, help="of the chats alone, in each run")


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures both models; shares below the limits are violations."""
    folder: Path = options.folder / "sharing"
    fill_volume(folder / "models", options.folder / f"{options.layers}-layers", options.layers)
    report: Json = {"layers": options.layers, "runs": options.runs, "streams": options.streams}
    violations = []
    with running(folder, slots=8, threads=None) as service:
        bring_miniature(service)
        for model in (MINIATURE, MODEL):
            found = measure(service, model, options)
            report[model] = found
            print({model: found}, flush=True)
            violations += [f"{model}: {text}" for text in limits_missed(found)]
    return report, violations


def fill_volume(models: Path, fixtures: Path, layers: int) -> None:
    """Puts the small model, the base and the adapters on the volume; files are linked, not copied."""
    make_small_model(models / MODEL)
    prepare(fixtures, layers)
    for name in (BASE, *ADAPTERS):
        if not (models / name).exists():
            shutil.copytree(fixtures / name, models / name, copy_function=os.link)


def bring_miniature(service: Service) -> None:
    """Imports and converts the miniature unless an earlier run has done it."""
    models = service.location.models_dir
    if (models / MINIATURE).exists():
        return
    source = Path(__file__).parents[1] / "examples" / "miniature" / "llama"
    shutil.copytree(source, models / "incoming" / "llama", dirs_exist_ok=True)
    succeed(service, kind="import", source={"path": "incoming/llama"}, target="miniature-original")
    succeed(service, kind="convert", source="miniature-original", target=MINIATURE)


def succeed(service: Service, **request: Any) -> Json:
    """Returns the succeeded job of a request."""
    response = service.http.post("/api/jobs", json=request)
    assert response.status_code == 202, response.text
    job = service.wait(response.json()["id"])
    assert job["status"] == "succeeded", job["error"]
    return job


def measure(service: Service, model: str, options: argparse.Namespace) -> Json:
    """Returns medians of interleaved runs, alone and together, and the shares."""
    rates: dict[str, list[float]] = {
        "chat": [],
        "chat_next_to_merge": [],
        "merge": [],
        "merge_next_to_chat": [],
    }
    for _ in range(options.runs):
        with Chats(service, model, options.streams) as chat:
            time.sleep(options.idle_seconds)
            now = time.time()
            rates["chat"].append(chat.tokens_per_second(now - 0.9 * options.idle_seconds, now))
        start, end, speed = merge(service)
        rates["merge"].append(speed)
        with Chats(service, model, options.streams) as chat:
            start, end, speed = merge(service)
        rates["merge_next_to_chat"].append(speed)
        rates["chat_next_to_merge"].append(chat.tokens_per_second(start, end))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return {
        "chat_tokens_per_second": round(medians["chat"], 1),
        "chat_tokens_per_second_next_to_merge": round(medians["chat_next_to_merge"], 1),
        "merge_mb_per_second": round(medians["merge"] / 1e6, 1),
        "merge_mb_per_second_next_to_chat": round(medians["merge_next_to_chat"] / 1e6, 1),
        "chat_share": round(medians["chat_next_to_merge"] / medians["chat"], 3),
        "merge_share": round(medians["merge_next_to_chat"] / medians["merge"], 3),
    }


def merge(service: Service) -> tuple[float, float, float]:
    """Merges once; returns start, end and the bytes written per second, and removes the model."""
    request = {"kind": "merge", "base": BASE, "adapters": list(ADAPTERS), "target": "merged", "force": True}
    job = succeed(service, **request)
    start, end = (datetime.fromisoformat(job[name]).timestamp() for name in ("started_at", "finished_at"))
    service.http.delete("/api/models/merged").raise_for_status()
    os.sync()
    return start, end, job["result"]["bytes_written"] / (end - start)


def limits_missed(found: Json) -> list[str]:
    """Returns the limits that the shares miss."""
    shares = {name: found[f"{name}_share"] for name in ("chat", "merge")}
    missed = [
        f"the {name} keeps {share} of its speed" for name, share in shares.items() if share < LEAST_SHARE
    ]
    if sum(shares.values()) < LEAST_SUM:
        missed.append(f"the shares sum to {sum(shares.values()):.2f}")
    return missed
