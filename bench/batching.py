"""The engine's own decode loop against transformers' ways to batch, and dtypes on the CPU, on one model."""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import dtypes, paged
from bench.job_requests import mixed
from bench.plots import draw_bars
from bench.service import MODEL
from bench.small_model import make_small_model, parameters
from services.generate import Engine, GenerationRequest, LoadedModel, TokenGenerated, build_prompt, load_model
from services.sampling import Sampling
from services.templates import PromptParts

Json = dict[str, Any]
Tokens = list[list[int]]
OWN = "own decode loop"


@dataclass(frozen=True)
class Work:
    """Prompts and the sampling of each."""

    prompts: Tokens
    samplings: list[Sampling]

    @property
    def new_tokens(self) -> list[int]:
        return [sampling.max_new_tokens for sampling in self.samplings]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures everything; the engine must generate for each prompt the same tokens as alone."""
    torch.set_num_threads(options.threads)
    folder: Path = options.folder / "generate/models" / MODEL
    make_small_model(folder)
    start = time.monotonic()
    loaded = load_model(folder)
    Engine(loaded, slots=options.prompts)
    seconds = round(time.monotonic() - start, 2)
    report: Json = {
        "parameters": parameters(folder), "torch_threads": options.threads, "runs": options.runs, "prompts": options.prompts,
        "seconds_to_load_and_start_own_loop": seconds,
    }  # fmt: skip
    start = time.monotonic()
    with paged.manager(folder) as running:
        report["seconds_to_load_and_start_continuous_batching"] = round(time.monotonic() - start, 2)
        report |= speeds(loaded, running, options)
        report["drawn_equal_to_alone"] = drawn(loaded, running, options.prompts)
    report["continuous_batching_breaks"] = paged.breaks(folder)
    report["dtypes"] = dtypes.compare(folder, options.runs)
    title = f"Tokens per second, {options.prompts} prompts, median"
    bars = report["tokens_per_second"]
    draw_bars(options.plots / "batching.svg", title, bars, unit="tokens/s", groups={OWN: 1})
    whole = f"{options.prompts}/{options.prompts}"
    same = report["greedy_equal_to_one_at_a_time"][OWN], report["drawn_equal_to_alone"][OWN]
    wrong = [f"the own loop wrote {same[0]} greedy and {same[1]} drawn answers as alone"]
    return report, [] if same == (whole, whole) else wrong


def speeds(loaded: LoadedModel, running: Any, options: argparse.Namespace) -> Json:
    """Measures greedy generation by each method, in interleaved runs after a warm-up."""
    greedy = work(loaded, options.prompts, greedy=True)
    ways: dict[str, Callable[[], Tokens]] = {
        "one at a time": lambda: one_at_a_time(loaded, greedy),
        "static batch, left-padded": lambda: static_batch(loaded, greedy),
        "continuous batching of transformers": lambda: paged.answer(running, greedy.prompts, greedy.samplings),
        "the same with a sampler hook": lambda: paged.answer(running, greedy.prompts, greedy.samplings, hook=True),
        OWN: lambda: engine(loaded, greedy, slots=options.prompts),
    }  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, Tokens] = {}
    for _ in range(options.runs + 1):
        for name, way in ways.items():
            start = time.monotonic()
            tokens[name] = way()
            rates[name].append(sum(greedy.new_tokens) / (time.monotonic() - start))
    expected = tokens["one at a time"]
    alone = rates["one at a time"]
    return {
        "new_tokens": sum(greedy.new_tokens),
        "times_one_at_a_time": {
            name: round(statistics.median(a / b for a, b in zip(found[1:], alone[1:], strict=True)), 2)
            for name, found in rates.items()
        },
        "tokens_per_second": {name: round(statistics.median(found[1:]), 1) for name, found in rates.items()},
        "greedy_equal_to_one_at_a_time": {name: _equal(found, expected) for name, found in tokens.items()},
    }


def drawn(loaded: LoadedModel, running: Any, count: int) -> dict[str, str]:
    """Counts the outputs with individual seed, temperature and penalty that equal those generated alone."""
    asked = work(loaded, count, greedy=False)
    pairs = zip(asked.prompts, asked.samplings, strict=True)
    alone = [engine(loaded, Work([prompt], [sampling]), slots=1)[0] for prompt, sampling in pairs]
    hooked = paged.answer(running, asked.prompts, asked.samplings, hook=True)
    return {
        OWN: _equal(engine(loaded, asked, slots=count), alone),
        "continuous batching with a sampler hook": _equal(hooked, alone),
    }


def work(loaded: LoadedModel, count: int, *, greedy: bool) -> Work:
    """Prompts of 8 to 64 tokens with 16 to 64 new ones."""
    prompts, samplings = [], []
    for number, ask in enumerate(mixed(count, seed=7)):
        prompts.append(build_prompt(loaded.tokenizer, PromptParts(prompt=ask["prompt"])).token_ids)
        drawing: Json = {"do_sample": False} if greedy else {"temperature": 0.9, "top_k": 40, "seed": number}
        penalty = 1.0 if greedy else 1.1
        new_tokens = ask["sampling"]["max_new_tokens"]
        samplings.append(Sampling(repetition_penalty=penalty, max_new_tokens=new_tokens, **drawing))
    return Work(prompts, samplings)


def one_at_a_time(loaded: LoadedModel, work: Work) -> Tokens:
    """transformers' `generate`, one prompt after another."""
    return [
        _generate(loaded, [prompt], new_tokens)[0]
        for prompt, new_tokens in zip(work.prompts, work.new_tokens, strict=True)
    ]


def static_batch(loaded: LoadedModel, work: Work) -> Tokens:
    """transformers' `generate` on all prompts at once: each waits for the longest output."""
    found = _generate(loaded, work.prompts, max(work.new_tokens))
    return [tokens[:count] for tokens, count in zip(found, work.new_tokens, strict=True)]


def _generate(loaded: LoadedModel, prompts: Tokens, new_tokens: int) -> Tokens:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model: Any = loaded.model
    found = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, pad_token_id=0
    )
    tokens: Tokens = found[:, width:].tolist()
    return tokens


def engine(loaded: LoadedModel, work: Work, *, slots: int) -> Tokens:
    """The engine's loop, in which no output ends early here: the end-of-text token is one of 32,000."""
    running = Engine(loaded, slots=slots)
    ids = [
        running.submit(GenerationRequest(prompt, sampling))
        for prompt, sampling in zip(work.prompts, work.samplings, strict=True)
    ]
    tokens: dict[str, list[int]] = {id: [] for id in ids}
    while running.has_work:
        for event in running.step():
            if isinstance(event, TokenGenerated):
                tokens[event.request_id].append(event.token_id)
    return [tokens[id] for id in ids]


def _equal(found: Tokens, expected: Tokens) -> str:
    return f"{sum(a == b for a, b in zip(found, expected, strict=True))}/{len(expected)}"
