"""Requests to a vLLM server, one per output, and the tokens of its streams.

Prompts are sent as token ids, and tokens come back as ids: templates, tokenizer, stop strings and the text are the service's
own, as with every engine.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from services.backend import own_vllm_fields
from services.engines.output import OutputRequest, ServedToken
from services.engines.vllm import MODEL
from services.errors import GraftwerkError, InvalidRequest, NotReady, PromptTooLong
from services.sampling import Sampling

TOKEN_PREFIX = "token_id:"
"""Form of a token in log-probabilities with `return_tokens_as_token_ids`."""

LOWEST_LOGPROB = -9999.0
"""Value that vLLM writes for minus infinity, and for all below it."""


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Returns the fields of the settings.

    Raises:
        UnsupportedOption: vLLM does not have one of them; the message names it.
    """
    greedy = sampling.greedy or sampling.top_p == 0  # vLLM takes a top_p above 0
    return {
        "temperature": 0 if greedy else sampling.temperature,
        "top_p": 1 if greedy else sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        **own_vllm_fields(sampling),
    }


def body_of(request: OutputRequest) -> dict[str, Any]:
    """Returns the JSON of a call to `/v1/completions`.

    vLLM always generates a token: an output of none is that of one whose token is left out. Raises UnsupportedOption.
    """
    fields = {
        **sampling_fields(request.sampling),
        "model": MODEL if request.adapter is None else request.adapter.name,
        "prompt": [*request.prompt_token_ids],
        "max_tokens": max(1, request.sampling.max_new_tokens),
        "seed": request.seed,
        "stop_token_ids": sorted(request.end_ids),
        "ignore_eos": True,
        "echo": request.prompt_logprobs is not None,
        "logprobs": request.logprobs,
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "structured_outputs": None if request.grammar is None else {"grammar": request.grammar.text()},
    }
    return {name: value for name, value in fields.items() if value is not None}


def tokens_of(data: str, *, echoed: int = 0) -> tuple[list[ServedToken], list[ServedToken], str | None]:
    """Returns the prompt's tokens, the new tokens and the reason of the end in one event of a stream.

    Args:
        echoed: Number of tokens of the prompt that come first in this event.

    Raises:
        NotReady: the data is not an event of an output, or an error of the server.
    """
    try:
        value = json.loads(data)
        if "error" in value:
            raise refusal(500, json.dumps(value))
        choice = value["choices"][0] if value["choices"] else {}
        new = [int(token_id) for token_id in choice.get("token_ids") or ()]
        scored = [*_scored(choice.get("logprobs") or {})]
        if len(scored) not in (0, echoed + len(new)):
            raise ValueError(f"{len(scored)} log-probabilities for {echoed + len(new)} tokens")
        tokens = scored[echoed:] or [ServedToken(token_id) for token_id in new]
        return scored[:echoed], tokens, choice.get("finish_reason")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotReady(
            f"vLLM sent an event that is not part of an output ({error}): {data[:200]!r}.",
            "Use the version of vLLM that worker/Dockerfile.vllm installs.",
        ) from error


def refusal(status: int, text: str) -> GraftwerkError:
    """Returns the error of a response that is not a success."""
    message = _message(text).removesuffix(".")
    if status >= 500 or status == 404:
        return NotReady(f"vLLM answered {status}: {message}.", "Try again; the worker's log has vLLM's own.")
    if "maximum context length" in message or "max_model_len" in message:
        return PromptTooLong(
            f"vLLM refuses the prompt: {message}.", "Shorten the prompt, or request fewer tokens."
        )
    return InvalidRequest(f"vLLM refuses the request: {message}.")


def _scored(logprobs: Mapping[str, Any]) -> Iterator[ServedToken]:
    tokens = logprobs.get("tokens") or ()
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    for token, logprob, top in zip(tokens, logprobs.get("token_logprobs") or (), tops, strict=True):
        pairs = [(_token_id(name), _logprob(value)) for name, value in (top or {}).items()]
        pairs.sort(key=lambda pair: -pair[1])
        yield ServedToken(_token_id(token), None if logprob is None else _logprob(logprob), tuple(pairs))


def _token_id(name: str) -> int:
    return int(name.removeprefix(TOKEN_PREFIX))


def _logprob(value: float) -> float:
    return value if value > LOWEST_LOGPROB else -math.inf


def _message(text: str) -> str:
    """Returns the message of an error's body."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:1000]
    except (ValueError, KeyError, TypeError):
        return text[:1000] or "nothing"
