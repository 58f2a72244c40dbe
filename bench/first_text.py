"""Seconds from the request to the first text: a job's event stream, OpenAI's stream, and the engine itself."""

import json
import statistics
import time
from collections.abc import Callable

import torch

from bench.job_requests import Json, ask
from bench.service import MODEL, Service
from services.generate import BuiltPrompt, Engine, GenerationRequest, TokenGenerated, build_prompt, load_model
from services.sampling import Sampling
from services.templates import Message, PromptParts

PROMPT = "what does a stream of events cost"
GREEDY = Sampling(do_sample=False, repetition_penalty=1.0, max_new_tokens=4)


def by_job(service: Service, model: str = MODEL) -> float:
    """`POST /api/jobs`, then the first `token` event with text."""
    start = time.monotonic()
    job_id = service.submit(ask(PROMPT, 4, seed=None) | {"model": model})
    for event in service.events(job_id):
        if event.event == "token" and json.loads(event.data)["text"]:
            found = time.monotonic() - start
            break
    service.wait(job_id)
    return found


def by_chat(service: Service, model: str = MODEL) -> float:
    """`POST /v1/chat/completions` with `stream`, then the first piece of content."""
    body = {
        "model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": True, "temperature": 0,
        "max_tokens": 4,
    }  # fmt: skip
    found = 0.0
    start = time.monotonic()
    with service.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            data = line.removeprefix("data: ")
            if found or not line.startswith("data: {"):
                continue
            choices = json.loads(data)["choices"]
            if choices and choices[0]["delta"].get("content"):
                found = time.monotonic() - start
    assert found, "no text came"
    return found


def by_engine(engine: Engine, prompt: BuiltPrompt) -> float:
    """`submit` and `step` in this process."""
    start = time.monotonic()
    engine.submit(GenerationRequest(prompt.token_ids, GREEDY))
    found = 0.0
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenGenerated) and event.text and not found:
                found = time.monotonic() - start
    return found


def compare(service: Service, threads: int, times: int, model: str = MODEL) -> Json:
    """Returns medians of interleaved rounds, in seconds."""
    torch.set_num_threads(threads)
    loaded = load_model(service.location.models_dir / model)
    engine = Engine(loaded)
    raw = build_prompt(loaded.tokenizer, PromptParts(prompt=PROMPT))
    chat = build_prompt(loaded.tokenizer, PromptParts(messages=[Message(role="user", content=PROMPT)]))
    ways: dict[str, Callable[[], float]] = {
        "engine, plain prompt": lambda: by_engine(engine, raw),
        "job's event stream": lambda: by_job(service, model),
        "engine, chat prompt": lambda: by_engine(engine, chat),
        "chat completions": lambda: by_chat(service, model),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(times + 1):
        for name, way in ways.items():
            seconds = way()
            if number:  # the first turn warms up
                found[name].append(seconds)
    medians = {name: round(statistics.median(seconds), 4) for name, seconds in found.items()}
    return {
        "times": times, "seconds": medians,
        "prompt_tokens": {"plain": len(raw.token_ids), "chat": len(chat.token_ids)},
        "service_adds_to_job": round(medians["job's event stream"] - medians["engine, plain prompt"], 4),
        "service_adds_to_chat": round(medians["chat completions"] - medians["engine, chat prompt"], 4),
    }  # fmt: skip
