"""Tokens per second of the reference engine, compared with vLLM in float32 on the same processor, in interleaved runs."""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from services.generate import Engine, GenerationRequest, LoadedModel, TokenGenerated, load_model
from services.sampling import Sampling

Json = dict[str, Any]
Tokens = list[list[int]]
NEEDED = 1.0
"""Smallest share of vLLM's tokens per second."""

CHILD = Path(__file__).parent / "vllm_child.py"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--model", type=Path, required=True, help="folder of a Hugging Face model")
    parser.add_argument(
        "--python", type=Path, default=Path(".consumers/vllm/bin/python"), help="interpreter that has vLLM"
    )
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures both in interleaved runs after a warm-up; vLLM has a process of its own with the same number of threads."""
    torch.set_num_threads(options.threads)
    report: Json = {
        "model": options.model.name, "torch_threads": options.threads, "runs": options.runs, "new_tokens": options.new_tokens,
        "eager": options.eager,
    }  # fmt: skip
    violations = []
    with Vllm(options) as vllm:
        loaded = load_model(options.model)
        for streams in options.streams:
            found = compare(loaded, vllm, streams, options)
            report[f"{streams} streams"] = found
            if found["ratio"] < NEEDED:
                violations.append(f"{streams} streams: {found['ratio']}")
    return report, violations


def compare(loaded: LoadedModel, vllm: "Vllm", streams: int, options: argparse.Namespace) -> Json:
    """Returns tokens per second of both, from the first request to the last token; medians, and the median ratio of neighbouring runs."""
    prompts = [
        [1000 + (7 * stream + 3 * place) % 20_000 for place in range(options.prompt_tokens)]
        for stream in range(streams)
    ]
    ways: dict[str, Callable[[Tokens, int], tuple[Tokens, float]]] = {
        "graftwerk": lambda prompts, new_tokens: generate(loaded, prompts, new_tokens),
        "vLLM": vllm.generate,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, Tokens] = {}
    for _ in range(options.runs + 1):
        for name, way in ways.items():
            tokens[name], taken = way(prompts, options.new_tokens)
            seconds[name].append(taken)
    count = streams * options.new_tokens
    pairs = zip(seconds["vLLM"][1:], seconds["graftwerk"][1:], strict=True)
    equal = sum(ours == theirs for ours, theirs in zip(tokens["graftwerk"], tokens["vLLM"], strict=True))
    return {
        "ratio": round(statistics.median(theirs / ours for theirs, ours in pairs), 3),
        "tokens_per_second": {
            name: round(count / statistics.median(found[1:]), 1) for name, found in seconds.items()
        },
        "equal_outputs": f"{equal}/{streams}",
    }


def generate(loaded: LoadedModel, prompts: Sequence[list[int]], new_tokens: int) -> tuple[Tokens, float]:
    """Returns the greedy tokens after each prompt, and the seconds from the first request to the last token."""
    bias = dict.fromkeys(loaded.tokenizer.eos_ids, -100.0)
    sampling = Sampling(do_sample=False, repetition_penalty=1.0, max_new_tokens=new_tokens, logit_bias=bias)
    start = time.perf_counter()
    engine = Engine(loaded, slots=len(prompts))
    tokens: dict[str, list[int]] = {
        engine.submit(GenerationRequest(prompt, sampling)): [] for prompt in prompts
    }
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenGenerated):
                tokens[event.request_id].append(event.token_id)
    return list(tokens.values()), time.perf_counter() - start


class Vllm:
    """A process with vLLM and the model."""

    def __init__(self, options: argparse.Namespace) -> None:
        settings = {
            "OMP_NUM_THREADS": str(options.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        }  # fmt: skip
        described = {
            "model": str(options.model.resolve()),
            "eager": options.eager,
            "slots": max(options.streams),
        }
        self._process = subprocess.Popen(
            [options.python, CHILD, json.dumps(described)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )
        self._answer()

    def __enter__(self) -> "Vllm":
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.communicate(timeout=60)

    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> tuple[Tokens, float]:
        """Returns the greedy tokens after each prompt, and the seconds from the first request to the last token."""
        assert self._process.stdin
        print(
            json.dumps({"prompts": prompts, "new_tokens": new_tokens}), file=self._process.stdin, flush=True
        )
        found = self._answer()
        return found["tokens"], found["seconds"]

    def _answer(self) -> Json:
        """Returns the next line that is an object; vLLM writes lines of its own."""
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: Json = json.loads(line)
                return answer
        raise SystemExit(f"vLLM ended with {self._process.wait()}")
