"""The engine in this process: a long prompt that arrives while streams run, and the first token with a cached prefix."""

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bench.service import MODEL
from bench.small_model import make_small_model, parameters
from services.generate import Engine, GenerationRequest, LoadedModel, TokenGenerated, load_model
from services.generate.kv_cache import BatchRunner
from services.generate.kv_memory import KVMemory
from services.generate.prompt_cache import PromptCache
from services.generate.prompt_reader import CHUNK_TOKENS
from services.sampling import Sampling

Json = dict[str, Any]
MOST_RATIO = 0.1

CONTEXT = 4608
"""Tokens of the small model's context."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument(
        "--model", type=Path, help="folder of a model; the small one with random weights if unset"
    )
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=4000, help="at most 100 less than the context")
    parser.add_argument("--prefix-tokens", type=int, default=1000)
    parser.add_argument("--question-tokens", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures everything; returns the report and the violations."""
    torch.set_num_threads(options.threads)
    folder: Path = options.model or options.folder / "decoding" / MODEL
    if options.model is None:
        make_small_model(folder, context=CONTEXT)
    loaded = load_model(folder)
    report: Json = {"model": folder.name, "parameters": parameters(folder), "torch_threads": options.threads}
    report["long_prompt"], violations = long_prompt(loaded, options)
    report["cached_prefix"], missed = cached_prefix(loaded, options)
    return report, violations + missed


def long_prompt(loaded: LoadedModel, options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures the gaps between the tokens of running streams while one long prompt is read."""
    tokens = min(options.prompt_tokens, loaded.context_length - 100)
    engine = Engine(loaded, slots=options.streams + 1)
    for number in range(options.streams):
        sampling = Sampling(
            seed=number, max_new_tokens=loaded.context_length - 32, logit_bias=_no_end(loaded)
        )
        engine.submit(GenerationRequest(words(loaded, 32, seed=number), sampling))
    while engine.active < options.streams:
        engine.step()
    before = [_step(engine)[0] for _ in range(10)]
    late = engine.submit(
        GenerationRequest(words(loaded, tokens, seed=99), Sampling(seed=99, max_new_tokens=2))
    )
    gaps, first = [], 0.0
    while not first:
        seconds, requests = _step(engine)
        gaps.append(seconds)
        first = sum(gaps) if late in requests else 0.0
    chunk, median = seconds_of_last_chunk(loaded, tokens), statistics.median(gaps)
    allowed = chunk + 2 * median
    found = {
        "prompt_tokens": tokens, "streams": options.streams, "seconds_to_first_token": first,
        "median_gap_before": statistics.median(before), "median_gap": median, "longest_gap": max(gaps),
        "last_chunk_alone": chunk, "allowed": allowed,
    }  # fmt: skip
    found = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
    missed = [f"the longest gap is {max(gaps):.3f} s, allowed are {allowed:.3f} s"] * (max(gaps) > allowed)
    return found, missed


def cached_prefix(loaded: LoadedModel, options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures the first token of questions after the same prefix, in interleaved runs with and without a cache."""
    prefix = words(loaded, options.prefix_tokens, seed=1)
    plain, cached = Engine(loaded), Engine(loaded, memory=KVMemory(2**34))
    first_token(cached, prefix)
    without, found = [], []
    for run in range(options.runs):
        question = [*prefix, *words(loaded, options.question_tokens, seed=2 + run)]
        without.append(first_token(plain, question))
        found.append(first_token(cached, question))
    ratio = statistics.median(a / b for a, b in zip(found, without, strict=True))
    report = {
        "prefix_tokens": options.prefix_tokens, "question_tokens": options.question_tokens, "runs": options.runs,
        "seconds_without": round(statistics.median(without), 4), "seconds": round(statistics.median(found), 4),
        "ratio": round(ratio, 3),
    }  # fmt: skip
    return report, [f"the first token takes {ratio:.3f} of the time without the cache"] * (ratio > MOST_RATIO)


def first_token(engine: Engine, token_ids: list[int]) -> float:
    """Returns the seconds to the first token of a prompt."""
    begun = time.perf_counter()
    engine.submit(GenerationRequest(token_ids, Sampling(max_new_tokens=1)))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - begun


def seconds_of_last_chunk(loaded: LoadedModel, tokens: int) -> float:
    """Returns the time of the last whole chunk of a prompt of this length, with nothing else running."""
    batch, chunk = BatchRunner(loaded.model), CHUNK_TOKENS[loaded.device.type]
    cache = PromptCache(tokens)
    ids = words(loaded, tokens, seed=99)
    seconds = 0.0
    for start in range(0, tokens - chunk + 1, chunk):
        begun = time.perf_counter()
        batch.read_chunk(ids[start : start + chunk], cache, kept=1)
        seconds = time.perf_counter() - begun
    return seconds


def words(loaded: LoadedModel, count: int, *, seed: int) -> list[int]:
    """Returns random ids of tokens, without special ones."""
    draw = random.Random(seed)
    return [draw.randrange(300, loaded.rows - 300) for _ in range(count)]


def _no_end(loaded: LoadedModel) -> dict[int, float]:
    return dict.fromkeys(loaded.tokenizer.eos_ids, -100.0)


def _step(engine: Engine) -> tuple[float, set[str]]:
    """Returns the seconds of a step and the requests that got a token."""
    begun = time.perf_counter()
    events = engine.step()
    seconds = time.perf_counter() - begun
    return seconds, {event.request_id for event in events if isinstance(event, TokenGenerated)}
