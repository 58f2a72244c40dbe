"""Continuous batching of transformers, unmodified and with a separate sampler for each request.

The hook replaces a private method (`ModelRunner._sample`): transformers' version must be pinned for it.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from services.generate.sampler import Sampler
from services.sampling import Sampling

PAGES, PAGE_TOKENS, BATCH_TOKENS = 64, 32, 512
PATIENCE_SECONDS = 3.0


@contextmanager
def manager(folder: Path, *, pages: int = PAGES) -> Iterator[Any]:
    """Runs a manager on its own copy of the model, whose attention it changes."""
    from transformers import (
        AutoModelForCausalLM,
        ContinuousBatchingConfig,
        GenerationConfig,
    )
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    found = model.eval().init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        # Without these three it takes what it takes for a GPU's memory.
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=pages, page_size=PAGE_TOKENS, max_batch_tokens=BATCH_TOKENS
        ),
    )
    found.start()
    try:
        yield found
    finally:
        found.stop(block=True, timeout=10)


def answer(
    running: Any, prompts: list[list[int]], samplings: Sequence[Sampling], *, hook: bool = False
) -> list[list[int]]:
    """Returns the tokens for each prompt; greedy without the hook."""
    samplers = {
        str(number): Sampler(sampling, prompt, end_ids=(), seed=sampling.seed or 0)
        for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
    }
    with _hooked(samplers) if hook else nullcontext():
        for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            running.add_request(prompt, request_id=str(number), max_new_tokens=sampling.max_new_tokens)
        found = _results(running, len(prompts))
    return [found[str(number)].generated_tokens for number in range(len(prompts))]


@contextmanager
def _hooked(samplers: dict[str, Sampler]) -> Iterator[None]:
    from transformers.generation.continuous_batching.model_runner import ModelRunner

    def choose(self: Any, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """Turns scores (1, requests with a new token, vocabulary) into one token each."""
        states = [state for state in self.inputs_and_outputs.requests_in_batch if state.has_new_token]
        for row, state in enumerate(states):
            output_ids[0, row] = samplers[state.state.request_id].choose(scores[0, row]).token_id

    before = ModelRunner._sample
    ModelRunner._sample = choose
    try:
        yield
    finally:
        ModelRunner._sample = before


def _results(running: Any, count: int, seconds: float = 600) -> dict[str, Any]:
    found: dict[str, Any] = {}
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        result = running.get_result(timeout=0.1)
        if result is not None and result.is_finished():
            found[result.request_id] = result
    return found


def breaks(folder: Path) -> dict[str, str]:
    """Tries the limitations that a service would have to work around."""
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # the tracebacks are expected
    return {"a prompt larger than the cache": _too_long(folder), "a cancel": _cancel(folder)}


def _too_long(folder: Path) -> str:
    with manager(folder, pages=4) as running:
        running.add_request([1, 5, 6, 7, 8], request_id="small", max_new_tokens=100)
        time.sleep(0.2)
        running.add_request([1] * 300, request_id="large", max_new_tokens=4)
        found = _results(running, 2, PATIENCE_SECONDS + 10)
        running.add_request([1, 2, 3], request_id="later", max_new_tokens=2)
        found |= _results(running, 1, PATIENCE_SECONDS)
    outcomes = {name: str(found[name].error or "answered") if name in found else "no outcome" for name in ("small", "large", "later")}  # fmt: skip
    return "; ".join(f"{name}: {outcome}" for name, outcome in outcomes.items())


def _cancel(folder: Path) -> str:
    with manager(folder) as running:
        running.add_request([1, 5, 6, 7, 8], request_id="canceled", max_new_tokens=400)
        time.sleep(0.5)
        running.cancel_request("canceled")
        found = _results(running, 1, PATIENCE_SECONDS)
    return f"{'an' if found else 'no'} outcome within {PATIENCE_SECONDS:.0f} s"
