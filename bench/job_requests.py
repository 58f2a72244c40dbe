"""Generate jobs of mixed length, the same in every run."""

import random
from typing import Any

Json = dict[str, Any]
NO_END = {"2": -100}
"""Bias that excludes the end-of-text token, so that each output has the requested length."""


def text_of(tokens: int, rng: random.Random) -> str:
    """Returns random letters of about this many tokens: one each, and four for the beginning."""
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=max(1, tokens - 4)))


def mixed(count: int, seed: int = 1) -> list[Json]:
    """Returns prompts of 8 to 64 tokens with 16 to 64 new ones; every other is greedy, the rest have a seed."""
    rng = random.Random(seed)
    return [
        ask(text_of(rng.randint(8, 64), rng), rng.randint(16, 64), seed=None if number % 2 else number)
        for number in range(count)
    ]


def alike(count: int, new_tokens: int, seed: int = 2) -> list[Json]:
    """Returns jobs of equal length."""
    rng = random.Random(seed)
    return [ask(text_of(24, rng), new_tokens, seed=None if number % 2 else number) for number in range(count)]


def ask(prompt: str, new_tokens: int, *, seed: int | None) -> Json:
    """Returns a greedy job, or one that samples with this seed."""
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
