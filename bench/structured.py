"""Processor time per token with a JSON schema or a regular expression, compared with free text, on one model."""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bench.service import MODEL
from bench.small_model import make_small_model, parameters
from services.generate import Engine, GenerationRequest, LoadedModel, load_model
from services.grammar import Grammar
from services.sampling import Sampling

Json = dict[str, Any]
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORMS: dict[str, Grammar | None] = {
    "free text": None,
    "records": Grammar(schema=json.dumps({"type": "array", "items": RECORD, "minItems": 1000})),
    "a long text": Grammar(schema=json.dumps({"type": "string", "minLength": 100_000})),
    "expression": Grammar(pattern="([a-z]+[0-9]{1,3} )*;"),
}
ALLOWED_SHARE = 0.1
"""Largest share of a token's time that a form may take."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--outputs", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures each form in interleaved runs after a warm-up."""
    torch.set_num_threads(options.threads)
    folder: Path = options.folder / "generate/models" / MODEL
    make_small_model(folder)
    loaded = load_model(folder)
    report: Json = {
        "parameters": parameters(folder), "torch_threads": options.threads, "runs": options.runs,
        "new_tokens": options.new_tokens, "outputs": {},
    }  # fmt: skip
    wrong = []
    for outputs in options.outputs:
        found = compare(loaded, outputs, options)
        report["outputs"][str(outputs)] = found
        wrong += [
            f"{outputs} outputs, {name}: {share:+.1%}"
            for name, share in found["share"].items()
            if share > ALLOWED_SHARE
        ]
    return report, wrong


def compare(loaded: LoadedModel, outputs: int, options: argparse.Namespace) -> Json:
    """Returns milliseconds of the processor per step of each form, and the share that it adds to free text, as medians of the runs."""
    engine = Engine(loaded, slots=outputs)
    times: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(options.runs + 1):
        for name, form in FORMS.items():
            times[name].append(step_seconds(engine, form, outputs, options.new_tokens))
    free = times["free text"][1:]
    return {
        "ms_per_step": {name: round(1000 * statistics.median(found[1:]), 2) for name, found in times.items()},
        "share": {
            name: round(statistics.median(a / b - 1 for a, b in zip(found[1:], free, strict=True)), 3)
            for name, found in times.items() if name != "free text"
        },
    }  # fmt: skip


def step_seconds(engine: Engine, form: Grammar | None, outputs: int, new_tokens: int) -> float:
    """Returns the median seconds of the processor for a step in which every output gets a token; none ends before `new_tokens`."""
    bias = {2: -100.0}
    for seed in range(outputs):
        sampling = Sampling(seed=seed, max_new_tokens=new_tokens, temperature=1, logit_bias=bias)
        engine.submit(GenerationRequest([1, 300 + seed, 400], sampling, grammar=form))
    engine.step()
    seconds = []
    while engine.active == outputs:
        start = time.process_time()
        engine.step()
        seconds.append(time.process_time() - start)
    while engine.has_work:
        engine.step()
    return statistics.median(seconds)
