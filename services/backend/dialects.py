"""Names of the sampling settings beyond OpenAI's API, by kind of server.

A server is recognized by `owned_by` in its list of models. vLLM's names are those of "Extra parameters" in the documentation of
its OpenAI-compatible server, llama.cpp's those of `tools/server/README.md`. A server applies defaults of its own to settings
that a request leaves out (llama.cpp has a top_k of 40), so all settings that it knows are always sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.errors import UnsupportedOption
from services.sampling import Sampling

NEUTRAL: Mapping[str, Any] = {
    "top_k": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
}
"""Our settings beyond OpenAI's, and the values that have no effect."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """A server's `names` by ours, `fixed` fields that are always sent, and its `values` for some of ours."""

    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[tuple[str, Any], Any] = field(default_factory=dict)


_OURS = {name: name for name in ("top_k", "min_p", "repetition_penalty")}

STRICT = Dialect()
"""A server that has only OpenAI's own parameters."""

DIALECTS: Mapping[str, Dialect] = {
    "graftwerk": Dialect(_OURS),
    # 0 was an error in older versions; -1 means all in every version
    "vllm": Dialect({**_OURS, "min_new_tokens": "min_tokens"}, values={("top_k", 0): -1}),
    # the default looks for repetitions in the last 64 tokens only; -1 means all
    "llamacpp": Dialect(
        {
            "top_k": "top_k",
            "min_p": "min_p",
            "typical_p": "typical_p",
            "repetition_penalty": "repeat_penalty",
        },
        fixed={"repeat_last_n": -1},
    ),
}


def extra_fields(sampling: Sampling, dialect: str) -> dict[str, Any]:
    """Returns the settings beyond OpenAI's under the server's names.

    Raises:
        UnsupportedOption: a setting is set that this server does not have; the message names it.
    """
    known = DIALECTS.get(dialect, STRICT)
    values = {name: getattr(sampling, name) for name in NEUTRAL}
    values = {name: NEUTRAL[name] if value is None else value for name, value in values.items()}
    for name, value in values.items():
        if name not in known.names and value != NEUTRAL[name]:
            raise UnsupportedOption(
                f"The server that generates with this model has no {name}; the request sets it to {value}.",
                f"Set sampling.{name} to {NEUTRAL[name]}, or use one of this service's own models.",
            )
    sent = {
        their: known.values.get((name, values[name]), values[name]) for name, their in known.names.items()
    }
    return sent | dict(known.fixed)
