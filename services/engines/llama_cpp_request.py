"""Requests to a process of llama.cpp, and the tokens of its events.

Prompts are sent as token ids, and tokens come back as ids: templates, tokenizer, stop strings and the text are the service's
own, as with every engine.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.backend import llama_cpp_fields
from services.engines.output import OutputRequest, ServedToken
from services.errors import GraftwerkError, InvalidRequest, NotReady, PromptTooLong

FORCING_BIAS = 10_000.0
"""Added to the score of a token that is to be generated; log-probabilities are those before."""

SEEDS = 2**32 - 1
"""Number of seeds; the next one means "at random"."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an output: the tokens before it, the number of tokens at most, one event for each or all at its end."""

    written: Sequence[int]
    limit: int
    streamed: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of an event, their text, the number of tokens of the part so far, and the reason of its end.

    `scored` are those of the tokens that llama.cpp scores: tokens that end within a character are left out.
    """

    ids: Sequence[int]
    scored: Sequence[ServedToken]
    text: str
    count: int
    end: str | None = None


def body_of(request: OutputRequest, part: Part) -> dict[str, Any]:
    """Returns the JSON of a call to `/completion`. Raises UnsupportedOption."""
    return {
        "prompt": [*request.prompt_token_ids, *part.written],
        "n_predict": part.limit,
        "seed": seed_of(request.seed, len(part.written)),
        "stream": part.streamed,
        "return_tokens": True,
        "cache_prompt": True,
        "n_probs": 0 if request.logprobs is None else max(1, request.logprobs),
        **({} if request.grammar is None else {"grammar": request.grammar.text(compact=True)}),
        **llama_cpp_fields(request.sampling),
        "repeat_last_n": len(request.prompt_token_ids) + request.sampling.max_new_tokens,
    }


def score_body(request: OutputRequest, written: Sequence[int], forced: int, count: int) -> dict[str, Any]:
    """Returns the JSON of a call that scores the `count` most likely tokens after a text, by generating the token `forced`."""
    body = body_of(request, Part(written, 1, streamed=False))
    bias = {"logit_bias": [[forced, FORCING_BIAS]], "temperature": 0, "samplers": ["temperature"]}
    return body | bias | {"n_probs": count}


def seed_of(seed: int, position: int) -> int:
    """Returns llama.cpp's seed of the part of an output that begins at this token."""
    digest = hashlib.sha256(f"{seed} {position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % SEEDS


def tokens_of(data: str) -> Tokens:
    """Returns what an event or a response has.

    Raises:
        NotReady: the data is neither, or an error of the server.
    """
    try:
        value = json.loads(data)
        if "error" in value:
            raise refusal(int(value["error"].get("code", 500)), data)
        ids = [int(token_id) for token_id in value["tokens"]]
        scored = [_scored(entry) for entry in value.get("completion_probabilities") or ()]
        end = str(value["stop_type"]) if value["stop"] else None
        return Tokens(ids, scored, str(value["content"]), int(value["tokens_predicted"]), end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotReady(
            f"llama.cpp sent an event that is not part of an output ({error}): {data[:200]!r}.",
            "Install the version of xllamacpp that pyproject.toml names.",
        ) from error


def refusal(status: int, text: str) -> GraftwerkError:
    """Returns the error of a response that is not a success."""
    try:
        error = json.loads(text)["error"]
        message, kind = str(error["message"])[:1000].removesuffix("."), error.get("type")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, kind = text[:1000] or "nothing", None
    if kind == "exceed_context_size_error":
        return PromptTooLong(
            f"llama.cpp refuses the prompt: {message}.", "Shorten the prompt, or request fewer tokens."
        )
    if status >= 500:
        return NotReady(f"llama.cpp answered {status}: {message}.", "Try again.")
    return InvalidRequest(f"llama.cpp refuses the request: {message}.")


def _scored(entry: dict[str, Any]) -> ServedToken:
    top = tuple((int(other["id"]), float(other["logprob"])) for other in entry["top_logprobs"])
    return ServedToken(int(entry["id"]), float(entry["logprob"]), top)
