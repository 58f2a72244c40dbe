"""Eight adapters in one batch on one base, compared with the base alone, and the first token after a change of scale."""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.batching import Tokens
from bench.decoding import words
from bench.service import MODEL
from bench.small_model import make_small_model, parameters
from services.generate import Engine, GenerationRequest, LoadedModel, TokenGenerated, load_model
from services.generate.adapter_stack import AdapterStack
from services.kinds.generate import GenerateRequest
from services.merge import merge
from services.models.store import ModelStore
from services.sampling import Sampling
from worker.inference.adapter_stacks import AdapterPool, describe_stack
from worker.inference.model_key import ModelKey, key_of

Json = dict[str, Any]
LEAST_SHARE = 0.7
"""Smallest share of the base's throughput that a batch with different adapters must have."""

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument(
        "--model", type=Path, help="folder of a model; the small one with random weights if unset"
    )
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)


class Volume:
    """A float32 copy of the base and adapters of all its linear modules, with random factors."""

    def __init__(self, folder: Path, source: Path, options: argparse.Namespace) -> None:
        shutil.copytree(source, folder / "base")
        state = {name: t.float() for name, t in load_file(source / "model.safetensors").items()}
        save_file(state, folder / "base" / "model.safetensors", {"format": "pt"})
        self.store = ModelStore(folder)
        self.names = [f"adapter-{number}" for number in range(options.adapters)]
        for number, name in enumerate(self.names):
            write_adapter(folder / name, state, rank=options.rank, seed=number)

    def key(self, name: str, scale: float = 1.0) -> ModelKey:
        choice = {"name": name, "scale": scale}
        body = {"kind": "generate", "model": "base", "prompt": "", "adapters": [choice]}
        return key_of(GenerateRequest.model_validate(body), self.store)

    def stack(self, pool: AdapterPool, name: str, scale: float = 1.0) -> AdapterStack:
        key = self.key(name, scale)
        return pool.load(describe_stack(key, self.store).stack, key)[1]

    def merged(self, target: Path, name: str, scale: float = 1.0) -> LoadedModel:
        target.mkdir()
        merge(self.store.path("base"), [(name, self.store.path(name), scale)], target)
        loaded = load_model(target)
        shutil.rmtree(target)
        return loaded


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures everything; returns the report and the violations."""
    torch.set_num_threads(options.threads)
    source: Path = options.model or options.folder / "generate/models" / MODEL
    if options.model is None:
        make_small_model(source)
    with TemporaryDirectory(prefix="adapters-", dir=options.folder) as folder:
        volume = Volume(Path(folder), source, options)
        loaded = load_model(volume.store.path("base"))
        pool = AdapterPool(loaded, Engine(loaded))
        stacks = [volume.stack(pool, name) for name in volume.names]
        report: Json = {
            "model": source.name, "parameters": parameters(source), "torch_threads": options.threads,
            "adapters": options.adapters, "rank": options.rank, "requests": options.requests, "new_tokens": options.new_tokens,
            "adapter_mb": round(sum(stacks[0].parts.values()) / 1e6, 1), "base_mb": round(loaded.size_bytes / 1e6, 1),
        }  # fmt: skip
        share, tokens = throughput(loaded, stacks, options)
        report |= share
        report["equal_to_merged_copies"] = equal_to_merged(volume, tokens, options)
        report["first_token_after_a_new_scale"] = new_scale(volume, pool, loaded, options)
    violations = []
    if report["share_of_the_base"] < LEAST_SHARE:
        violations.append(f"with adapters {report['share_of_the_base']} of the base's throughput")
    if report["equal_to_merged_copies"] != f"{options.requests}/{options.requests}":
        violations.append(f"{report['equal_to_merged_copies']} outputs have the merged copies' tokens")
    return report, violations


def requests(
    loaded: LoadedModel, stacks: Sequence[AdapterStack | None], options: argparse.Namespace
) -> list[GenerationRequest]:
    """Greedy requests of one length over the stacks in turn."""
    bias = dict.fromkeys(loaded.tokenizer.eos_ids, -100.0)
    sampling = Sampling(
        do_sample=False, repetition_penalty=1.0, max_new_tokens=options.new_tokens, logit_bias=bias
    )
    return [
        GenerationRequest(words(loaded, 24, seed=number), sampling, adapters=stacks[number % len(stacks)])
        for number in range(options.requests)
    ]


def generated(loaded: LoadedModel, asked: Sequence[GenerationRequest]) -> tuple[Tokens, float]:
    """Returns the tokens of each request, and the new tokens per second of the processor after all have their first."""
    engine = Engine(loaded, slots=len(asked))
    tokens: dict[str, list[int]] = {engine.submit(request): [] for request in asked}
    start = counted = 0.0
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenGenerated):
                tokens[event.request_id].append(event.token_id)
        if not start and all(tokens.values()):
            start, counted = time.process_time(), sum(map(len, tokens.values()))
    rate = (sum(map(len, tokens.values())) - counted) / (time.process_time() - start)
    return list(tokens.values()), rate


def throughput(
    loaded: LoadedModel, stacks: Sequence[AdapterStack], options: argparse.Namespace
) -> tuple[Json, Tokens]:
    """Measures the batch with adapters and without, in interleaved runs after a warm-up."""
    rates: dict[str, list[float]] = {"base": [], "adapters": []}
    tokens: Tokens = []
    for _ in range(options.runs + 1):
        rates["base"].append(generated(loaded, requests(loaded, [None], options))[1])
        tokens, rate = generated(loaded, requests(loaded, stacks, options))
        rates["adapters"].append(rate)
    pairs = zip(rates["adapters"][1:], rates["base"][1:], strict=True)
    return {
        "share_of_the_base": round(statistics.median(a / b for a, b in pairs), 2),
        "tokens_per_processor_second": {
            name: round(statistics.median(found[1:]), 1) for name, found in rates.items()
        },
    }, tokens


def equal_to_merged(volume: Volume, tokens: Tokens, options: argparse.Namespace) -> str:
    """Counts the outputs that a merged float32 copy writes for the same prompt."""
    equal = 0
    for number, name in enumerate(volume.names):
        copy = volume.merged(volume.store.root / "copy", name)
        asked = requests(copy, [None], options)[number :: len(volume.names)]
        alone = [generated(copy, [request])[0][0] for request in asked]
        equal += sum(a == b for a, b in zip(alone, tokens[number :: len(volume.names)], strict=True))
    return f"{equal}/{len(tokens)}"


def new_scale(volume: Volume, pool: AdapterPool, loaded: LoadedModel, options: argparse.Namespace) -> Json:
    """Measures the seconds from a request with a new scale to its first token, in interleaved runs."""
    seconds: dict[str, list[float]] = {"merged copy": [], "unmerged": []}
    for number in range(options.runs + 1):
        scale = 0.5 + number / 100
        start = time.monotonic()
        first_token(volume.merged(volume.store.root / "copy", volume.names[0], scale), None, options)
        seconds["merged copy"].append(time.monotonic() - start)
        start = time.monotonic()
        first_token(loaded, volume.stack(pool, volume.names[0], scale), options)
        seconds["unmerged"].append(time.monotonic() - start)
    return {name: round(statistics.median(found[1:]), 3) for name, found in seconds.items()}


def first_token(loaded: LoadedModel, stack: AdapterStack | None, options: argparse.Namespace) -> None:
    """Returns after the first token of a prompt."""
    engine = Engine(loaded)
    engine.submit(requests(loaded, [stack], options)[0])
    while not any(isinstance(event, TokenGenerated) for event in engine.step()):
        pass


def write_adapter(folder: Path, state: dict[str, torch.Tensor], *, rank: int, seed: int) -> None:
    """Writes an adapter in PEFT's form for all linear modules of a base."""
    folder.mkdir()
    torch.manual_seed(seed)
    factors = {}
    for name, weight in state.items():
        if name.split(".")[-2] in MODULES:
            module = "base_model.model." + name.removesuffix(".weight")
            factors[f"{module}.lora_A.weight"] = torch.randn(rank, weight.shape[1]) * weight.std() / rank
            factors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], rank) * 0.3
    save_file(factors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [*MODULES],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
