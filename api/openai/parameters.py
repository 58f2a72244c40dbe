"""Parameters of OpenAI's API that have no effect here.

A parameter that cannot change the output is left out and named in the response (`graftwerk.ignored`): clients send many
of them with every request. A parameter that would change the output is refused, except for the values that request
nothing.
"""

from collections.abc import Mapping
from typing import Any

IGNORED = frozenset(
    {
        # identify or file the request
        "client_metadata", "include_obfuscation", "metadata", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "service_tier", "store", "user",
        # offer what the model may use and need not
        "functions",
        # hints for other kinds of models and engines
        "include_reasoning", "prediction", "reasoning", "reasoning_effort", "verbosity",
    }
)  # fmt: skip
"""Parameters that are left out, whichever value they have."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "service_tier": ("auto", "default"),
    "stop_token_ids": ([],),
    "store": (False,),
    "suffix": ("",),
    "tools": ([],),
}
"""Values that request nothing; they are dropped and not reported as ignored."""

REFUSALS: Mapping[str, str] = {
    "function_call": "A call of functions cannot be required. Send them as tools, with tool_choice in place of function_call.",
}
"""Explanations for parameters whose refusal needs more than their name."""


def requests_nothing(name: str, value: Any, neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL) -> bool:
    """Returns True if a parameter with this value is the same as none; null always is."""
    return value is None or value in neutral.get(name, ())


def ignored_parameters(body: Any) -> list[str]:
    """Returns the names of a body's parameters that are left out although they request something, in its order."""
    if not isinstance(body, dict):
        return []
    return [name for name, value in body.items() if name in IGNORED and not requests_nothing(name, value)]
