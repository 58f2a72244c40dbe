"""Processor time per token with a JSON schema, a regular expression or a required call, compared with free text, on one model."""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.service import MODEL
from bench.small_model import make_small_model, parameters
from services.chat_output import CALL_FORMATS, OutputForm, OutputParser
from services.generate import Engine, Event, GenerationRequest, LoadedModel, TokenGenerated, load_model
from services.grammar import Grammar
from services.kinds.generate import GenerateRequest
from services.sampling import Sampling
from worker.inference.output_form import grammar_for, pieces_of

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
RECORDS = {"type": "array", "items": RECORD, "minItems": 1000}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"store_{kind}",
            "parameters": {"type": "object", "properties": {kind: RECORDS}, "required": [kind]},
        },
    }
    for kind in ("people", "cities", "orders", "events", "images", "routes", "scores", "labels")
]
PLAIN = OutputForm()
CALL = OutputForm(
    calls=next(form for form in CALL_FORMATS if form.name == "hermes"),
    names=frozenset(tool["function"]["name"] for tool in TOOLS), is_required=True,
)  # fmt: skip
CALLING = GenerateRequest.model_validate(
    {"kind": "generate", "model": MODEL, "prompt": "x", "tools": TOOLS, "tool_choice": "required"}
)


@dataclass(frozen=True, slots=True)
class Case:
    """Grammar of outputs, and the form in which their parts are read, as in a job."""

    grammar: Grammar | None = None
    form: OutputForm = PLAIN


CASES = {
    "free text": Case(),
    "records": Case(Grammar(schema=json.dumps(RECORDS))),
    "a long text": Case(Grammar(schema=json.dumps({"type": "string", "minLength": 100_000}))),
    "expression": Case(Grammar(pattern="([a-z]+[0-9]{1,3} )*;")),
    "a required call": Case(grammar_for(CALLING, CALL, {}), CALL),
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
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(options.runs + 1):
        for name, case in CASES.items():
            times[name].append(step_seconds(engine, case, outputs, options.new_tokens))
    free = times["free text"][1:]
    return {
        "ms_per_step": {name: round(1000 * statistics.median(found[1:]), 2) for name, found in times.items()},
        "share": {
            name: round(statistics.median(a / b - 1 for a, b in zip(found[1:], free, strict=True)), 3)
            for name, found in times.items() if name != "free text"
        },
    }  # fmt: skip


def step_seconds(engine: Engine, case: Case, outputs: int, new_tokens: int) -> float:
    """Returns the median seconds of the processor for a step in which every output gets a token; none ends before `new_tokens`."""
    bias = {2: -100.0}
    parsers = {}
    for seed in range(outputs):
        sampling = Sampling(seed=seed, max_new_tokens=new_tokens, temperature=1, logit_bias=bias)
        request = GenerationRequest([1, 300 + seed, 400], sampling, grammar=case.grammar)
        parsers[engine.submit(request)] = OutputParser(case.form)
    read(engine.step(), parsers)
    seconds = []
    while engine.active == outputs:
        start = time.process_time()
        read(engine.step(), parsers)
        seconds.append(time.process_time() - start)
    while engine.has_work:
        read(engine.step(), parsers)
    if case.form.is_required and not all(parser.parts.calls for parser in parsers.values()):
        raise AssertionError("An output is not a call.")
    return statistics.median(seconds)


def read(events: Sequence[Event], parsers: Mapping[str, OutputParser]) -> None:
    """Reads the parts of new texts, and makes the pieces of calls that a stream has."""
    for event in events:
        if isinstance(event, TokenGenerated):
            parts = parsers[event.request_id].feed(event.text)
            pieces_of(CALL, parts.calls, first=len(parsers[event.request_id].parts.calls), seed="")
