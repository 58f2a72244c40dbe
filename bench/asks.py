"""Generate jobs of mixed length, the same in every run."""

import random
from typing import Any

Json = dict[str, Any]
NO_END = {"2": -100}
"""Keeps the end of text from being drawn, so that each answer has the length that it was asked for."""


def text_of(tokens: int, rng: random.Random) -> str:
    """Returns letters of about this many tokens: one each, and four for the beginning."""
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=max(1, tokens - 4)))


def mixed(count: int, seed: int = 1) -> list[Json]:
    """Prompts of 8 to 64 tokens with 16 to 64 new ones; every other is greedy, the rest have a seed."""
    rng = random.Random(seed)
    return [
        ask(text_of(rng.randint(8, 64), rng), rng.randint(16, 64), seed=None if number % 2 else number)
        for number in range(count)
    ]


def alike(count: int, new_tokens: int, seed: int = 2) -> list[Json]:
    """Jobs that run for as long as each other."""
    rng = random.Random(seed)
    return [ask(text_of(24, rng), new_tokens, seed=None if number % 2 else number) for number in range(count)]


def ask(prompt: str, new_tokens: int, *, seed: int | None) -> Json:
    """A greedy job, or one that draws with this seed."""
    drawing = {"do_sample": False} if seed is None else {"temperature": 1.0, "top_k": 40, "seed": seed}
    return {
        "prompt": prompt,
        "sampling": {
            **drawing,
            "repetition_penalty": 1.0,
            "max_new_tokens": new_tokens,
            "logit_bias": NO_END,
        },
    }
