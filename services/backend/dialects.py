"""Names of the sampling settings beyond OpenAI's API, by kind of server.

A server is recognized by `owned_by` in its list of models. vLLM's names are those of "Extra parameters" in the documentation of
its OpenAI-compatible server, llama.cpp's those of `tools/server/README.md`. A server applies defaults of its own to settings
that a request leaves out (llama.cpp has a top_k of 40), so all settings that it knows are always sent.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.errors import UnsupportedOption
from services.kinds.guidance import GuidedPromptOptions
from services.sampling import Sampling

NEUTRAL: Mapping[str, Any] = {
    "top_k": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "stop_token_ids": None,
}
"""Our settings beyond OpenAI's, and the values that have no effect; null is not sent."""


LONGEST_CONTEXT = 1_000_000
"""Tokens in which repetitions are looked for, where a server has a limit."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """A server's `names` by ours, `fixed` fields that are always sent, and its `values` for some of ours.

    `continuing` are the fields with which it continues an assistant's last message, None if it does not. `form` is the field
    that holds an output to a `json` schema or a `regex`, as far as it has one.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[tuple[str, Any], Any] = field(default_factory=dict)
    continuing: Mapping[str, Any] | None = None
    form: Mapping[str, Callable[[Any], Mapping[str, Any]]] = field(default_factory=dict)


def _response_format(schema: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
    return {"response_format": form}


_OURS = {name: name for name in ("top_k", "min_p", "repetition_penalty")}

STRICT = Dialect()
"""A server that has only OpenAI's own parameters."""

DIALECTS: Mapping[str, Dialect] = {
    "graftwerk": Dialect(
        {**_OURS, "stop_token_ids": "stop_token_ids"},
        continuing={},
        form={"json": _response_format, "regex": lambda pattern: {"guided_regex": pattern}},
    ),
    # 0 was an error in older versions; -1 means all in every version
    "vllm": Dialect(
        {**_OURS, "min_new_tokens": "min_tokens", "stop_token_ids": "stop_token_ids"},
        values={("top_k", 0): -1},
        continuing={"add_generation_prompt": False, "continue_final_message": True},
        form={
            "json": lambda schema: {"structured_outputs": {"json": schema}},
            "regex": lambda pattern: {"structured_outputs": {"regex": pattern}},
        },
    ),
    # the default looks for repetitions in the last 64 tokens only; newer versions do not take -1 for all
    "llamacpp": Dialect(
        {
            "top_k": "top_k",
            "min_p": "min_p",
            "typical_p": "typical_p",
            "repetition_penalty": "repeat_penalty",
        },
        fixed={"repeat_last_n": LONGEST_CONTEXT},
        continuing={},  # --prefill-assistant is on by default
        form={"json": lambda schema: {"json_schema": schema}},
    ),
}


SERVER = "The server that generates with this model"
ALTERNATIVE = "use one of this service's own models"


def extra_fields(
    sampling: Sampling, dialect: str, *, server: str = SERVER, alternative: str = ALTERNATIVE
) -> dict[str, Any]:
    """Returns the settings beyond OpenAI's under the server's names; `server` and `alternative` are words of the error.

    Raises:
        UnsupportedOption: a setting is set that this server does not have; the message names it.
    """
    known = DIALECTS.get(dialect, STRICT)
    values = {name: getattr(sampling, name) for name in NEUTRAL}
    values = {name: NEUTRAL[name] if value is None else value for name, value in values.items()}
    for name, value in values.items():
        if name not in known.names and value != NEUTRAL[name]:
            raise UnsupportedOption(
                f"{server} has no {name}; the request sets it to {value}.",
                f"Set sampling.{name} to {NEUTRAL[name]}, or {alternative}.",
            )
    sent = {
        their: known.values.get((name, values[name]), values[name]) for name, their in known.names.items()
    }
    return sent | dict(known.fixed)


def continuing_fields(dialect: str) -> Mapping[str, Any]:
    """Returns the fields with which the server continues an assistant's last message. Raises UnsupportedOption."""
    fields = DIALECTS.get(dialect, STRICT).continuing
    if fields is None:
        raise UnsupportedOption(
            "The server that generates with this model may not continue an assistant's last message.",
            "End the messages with one of role user, or use one of this service's own models.",
        )
    return fields


def form_fields(request: GuidedPromptOptions, dialect: str) -> Mapping[str, Any]:
    """Returns the fields that hold an output to the request's form, none without one. Raises UnsupportedOption."""
    if not request.is_guided:
        return {}
    kind, value = ("regex", request.guided_regex)
    if request.schema_text is not None:
        kind, value = "json", json.loads(request.schema_text)
    write = DIALECTS.get(dialect, STRICT).form.get(kind)
    if write is None:
        name = "response_format" if kind == "json" else "guided_regex"
        raise UnsupportedOption(
            f"The server that generates with this model is not known to hold outputs to a {name}.",
            "Leave it out, or use one of this service's own models.",
        )
    return write(value)


def own_vllm_fields(sampling: Sampling) -> dict[str, Any]:
    """Returns the settings beyond OpenAI's for a vLLM that this service runs. Raises UnsupportedOption."""
    return extra_fields(sampling, "vllm", server="vLLM", alternative="have the engine graftwerk generate")
