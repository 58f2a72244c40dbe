"""Tokens per second of a GGUF model through this service's engine, compared with llama.cpp's own server, in interleaved runs."""

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Json = dict[str, Any]
NEEDED = 0.9
"""Least share of the own server's tokens per second."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--model", type=Path, required=True, help="folder of a GGUF model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures both in interleaved runs after a warm-up; each has a process of its own with the same options."""
    slots = max(options.streams)
    engine, wakeup = start(options, slots)
    other, _ = start(options, slots)
    report: Json = {"threads": options.threads, "runs": options.runs, "new_tokens": options.new_tokens}
    wrong = []
    try:
        while not (engine.free_slots and other.free_slots):
            time.sleep(0.1)
        for streams in options.streams:
            prompts = [[1 + (7 * stream + place) % 1000 for place in range(16)] for stream in range(streams)]
            ways = {
                "ours": lambda prompts=prompts: drive(engine, wakeup, prompts, options.new_tokens),
                "own server": lambda prompts=prompts: ask(other.server, prompts, options.new_tokens),
            }
            servers = {"ours": engine.server, "own server": other.server}
            found = compare(ways, servers, streams * options.new_tokens, options.runs)
            report[f"{streams} streams"] = found
            if found["ratio"] < NEEDED:
                wrong.append(f"{streams} streams: {found['ratio']}")
    finally:
        engine.close()
        other.close()
    return report, wrong


def compare(ways: dict[str, Callable[[], None]], servers: dict[str, Any], tokens: int, runs: int) -> Json:
    """Returns tokens per second and milliseconds of the processor per token of each way, here and in its process; medians.

    `ratio` is the median of the ratios of neighbouring runs; on a machine with other work the times of the processor say more.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    here: dict[str, list[float]] = {name: [] for name in ways}
    there: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, run in ways.items():
            begin, own, others = time.perf_counter(), time.process_time(), processor_seconds(servers[name])
            run()
            seconds[name].append(time.perf_counter() - begin)
            here[name].append(time.process_time() - own)
            there[name].append(processor_seconds(servers[name]) - others)
    ratios = [b / a for a, b in zip(seconds["ours"][1:], seconds["own server"][1:], strict=True)]
    return {
        "tokens_per_second": {name: round(tokens / statistics.median(found[1:]), 1) for name, found in seconds.items()},
        "client_ms_per_token": {name: milliseconds(found, tokens) for name, found in here.items()},
        "server_ms_per_token": {name: milliseconds(found, tokens) for name, found in there.items()},
        "ratio": round(statistics.median(ratios), 3),
    }  # fmt: skip


def milliseconds(seconds: list[float], tokens: int) -> float:
    """Returns the median without the first run, per token."""
    return round(1000 * statistics.median(seconds[1:]) / tokens, 2)


def processor_seconds(server: Any) -> float:
    """Returns the seconds of the processor that llama.cpp's process has used."""
    pids = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="ascii").split()
    fields = Path(f"/proc/{pids[0]}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(options: argparse.Namespace, slots: int) -> tuple[Any, threading.Event]:
    """Returns an engine with a process of its own, and the event that it sets."""
    from services.architectures.checkpoint_reader import read_checkpoint
    from services.engines.llama_cpp import LlamaCppOptions
    from services.engines.llama_cpp_server import LlamaCppServer
    from services.generate import read_served_gguf
    from worker.inference.llama_cpp_engine import LlamaCppEngine

    checkpoint = read_checkpoint(options.model)
    model = read_served_gguf(checkpoint, context=256, size_bytes=0, device_name="cpu")
    process = LlamaCppOptions(
        model=checkpoint.weight_files[0], slots=slots, context=256, threads=options.threads, memory_bytes=4 * 2**30
    )  # fmt: skip
    wakeup = threading.Event()
    server = LlamaCppServer("bench", process, model.tokenizer.token_bytes())
    engine = LlamaCppEngine(loaded=model, server=server, slots=slots, notify=wakeup.set, on_close=server.stop)
    return engine, wakeup


def sampling(new_tokens: int, ends: frozenset[int]) -> Any:
    """Returns greedy settings with which no output ends early."""
    from services.sampling import Sampling

    return Sampling(
        temperature=0,
        repetition_penalty=1.0,
        max_new_tokens=new_tokens,
        logit_bias=dict.fromkeys(ends, -100.0),
    )


def drive(engine: Any, wakeup: threading.Event, prompts: list[list[int]], new_tokens: int) -> None:
    """Generates by the engine, as the worker drives it."""
    from services.generate import GenerationRequest, OutputFinished

    settings = sampling(new_tokens, engine.loaded.tokenizer.eos_ids)
    for prompt in prompts:
        engine.submit(GenerationRequest(prompt, settings))
    left = len(prompts)
    while left:
        wakeup.wait(1)
        wakeup.clear()
        for event in engine.step():
            if isinstance(event, OutputFinished):
                assert len(event.output.token_ids) == new_tokens
                left -= 1


def ask(server: Any, prompts: list[list[int]], new_tokens: int) -> None:
    """Generates by streams of llama.cpp's own endpoint, each in a thread, with the same sampling."""
    import httpx

    address = next(server._scratch.glob("*.sock"))

    def one(prompt: list[int]) -> None:
        body = {
            "prompt": prompt,
            "n_predict": new_tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
        }
        with (
            httpx.Client(transport=httpx.HTTPTransport(uds=str(address)), base_url="http://s") as client,
            client.stream("POST", "/completion", json=body, timeout=600) as response,
        ):
            *_, last = (line for line in response.iter_lines() if line.startswith("data:"))
        assert json.loads(last.removeprefix("data:"))["tokens_predicted"] == new_tokens

    with ThreadPoolExecutor(len(prompts)) as threads:
        list(threads.map(one, prompts))
