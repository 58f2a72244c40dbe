"""The events of another server's stream as pieces of one answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import NotReady

DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one event says: new text, why the answer ended, its tokens' log-probabilities, the counts."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: Sequence[dict[str, Any]] = ()
    usage: Mapping[str, int] | None = None
    error: Mapping[str, Any] | None = None


def parse_chunk(data: str) -> Chunk:
    """A chunk from the data of an event, of either endpoint. Raises NotReady where it is none."""
    try:
        return _chunk(json.loads(data))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotReady(
            f"the generation server sent what is no chunk of an answer: {data[:200]!r}",
            "Is GENERATE_BACKEND_URL the address of an OpenAI-compatible server?",
        ) from error


def _chunk(value: dict[str, Any]) -> Chunk:
    if "error" in value:
        error = value["error"]
        return Chunk(error=error if isinstance(error, dict) else {"message": str(error)})
    usage = value.get("usage")
    counts = None if usage is None else {name: int(usage[name]) for name in _COUNTS}
    if not value["choices"]:
        return Chunk(usage=counts)
    choice = value["choices"][0]
    text = choice["text"] if "text" in choice else choice["delta"].get("content")
    return Chunk(text or "", choice.get("finish_reason"), tuple(_logprobs(choice.get("logprobs"))), counts)


_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def _logprobs(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Both forms of OpenAI's log-probabilities in a job's own; a token is its text, ids are not known."""
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


def _token(token: str, logprob: float, top: list[tuple[str, float]]) -> dict[str, Any]:
    fields: dict[str, Any] = {"token": token, "logprob": logprob}
    return fields | ({"top": [_token(*other, []) for other in top]} if top else {})
