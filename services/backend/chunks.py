"""Events of another server's stream as pieces of one output."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import NotReady
from services.kinds.generate import Logprob
from services.kinds.shared import Usage

DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class CallPart:
    """Part of call number `index`: its id and name once, and text of its arguments."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Content of one event: new text and its log-probabilities, the finish reason, the counts of tokens, an error.

    `stop_string` is the stop string that ended the output, from servers that report it.
    """

    text: str = ""
    finish_reason: str | None = None
    logprobs: Sequence[Logprob] = ()
    usage: Usage | None = None
    error: Mapping[str, Any] | None = None
    reasoning: str = ""
    calls: Sequence[CallPart] = ()
    stop_string: str | None = None


def parse_chunk(data: str) -> Chunk:
    """Returns the chunk in the data of an event, of either endpoint.

    Raises:
        NotReady: the data is not a chunk of an output.
    """
    try:
        return _chunk(json.loads(data))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotReady(
            f"The generation server sent data that is not a chunk of an output: {data[:200]!r}.",
            "Set GENERATE_BACKEND_URL to the address of an OpenAI-compatible server.",
        ) from error


def _chunk(value: dict[str, Any]) -> Chunk:
    if "error" in value:
        error = value["error"]
        return Chunk(error=error if isinstance(error, dict) else {"message": str(error)})
    usage = value.get("usage")
    counts = None if usage is None else Usage(**{name: int(usage[name]) for name in _COUNTS})
    if not value["choices"]:
        return Chunk(usage=counts)
    choice = value["choices"][0]
    delta = {} if "text" in choice else choice["delta"]
    text = choice["text"] if "text" in choice else delta.get("content")
    # vLLM's name; it is the id of a token too
    stopped_by = choice.get("stop_reason")
    return Chunk(
        text or "",
        choice.get("finish_reason"),
        tuple(_logprobs(choice.get("logprobs"))),
        counts,
        stop_string=stopped_by if isinstance(stopped_by, str) else None,
        reasoning=delta.get("reasoning_content") or delta.get("reasoning") or "",
        calls=tuple(map(_call_part, delta.get("tool_calls") or ())),
    )


def _call_part(value: Mapping[str, Any]) -> CallPart:
    function = value.get("function") or {}
    return CallPart(
        int(value.get("index") or 0),
        value.get("id") or "",
        function.get("name") or "",
        function.get("arguments") or "",
    )


_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def _logprobs(found: Mapping[str, Any] | None) -> list[Logprob]:
    """Returns the log-probabilities from either of OpenAI's forms; a token is its text, ids are not known."""
    if not found:
        return []
    if found.get("content") is not None:
        return [
            _token(item["token"], item["logprob"], [(top["token"], top["logprob"]) for top in item["top_logprobs"]])
            for item in found["content"]
        ]  # fmt: skip
    tokens = found.get("tokens") or []
    tops = found.get("top_logprobs") or [None] * len(tokens)
    return [
        _token(token, logprob, list((top or {}).items()))
        for token, logprob, top in zip(tokens, found["token_logprobs"], tops, strict=True)
    ]


def _token(token: str, logprob: float, top: list[tuple[str, float]]) -> Logprob:
    if not top:
        return Logprob(token=token, logprob=logprob)
    return Logprob(token=token, logprob=logprob, top=[_token(*other, []) for other in top])
