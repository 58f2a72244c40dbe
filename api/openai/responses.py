"""Responses in OpenAI's shapes: whole ones, and the chunks of a stream."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Response

from services.generate_engines import Engine
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, Logprob, Output, TokenPiece

Json = dict[str, Any]

ZERO_PROBABILITY = -9999.0
"""OpenAI's logarithm of a probability of zero, for which JSON has no number."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseBuilder:
    """Builds the response to one request from its job: one object, or chunks of a stream.

    `ignored` names the parameters of the request that were left out. With `echo` an output begins with its prompt.
    """

    job: Job
    model: str
    is_chat: bool
    ignored: Sequence[str]
    echo: bool = False

    def whole(self, result: GenerateResult) -> Json:
        """Returns the response to a request that is not streamed."""
        choices = [self._choice(index, output) for index, output in enumerate(result.outputs)]
        own = {"choices": choices, "usage": usage_of(result.outputs), "graftwerk": self._extension(result)}
        return self._header(is_chunk=False) | own

    def opening(self, index: int) -> Json:
        """Returns the chunk that begins an output of a chat."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def pieces(self, piece: TokenPiece) -> Iterator[Json]:
        """Yields the chunks with new parts of an output: thinking, text, and of each call first the name and then the arguments."""
        if piece.reasoning:
            yield self._chunk(piece.index, {"reasoning_content": piece.reasoning}, None, None)
        if piece.text or piece.logprobs:
            logprobs = self.logprobs(piece.logprobs, offset=piece.offset)
            yield self._chunk(piece.index, {"content": piece.text}, logprobs, None)
        for call in piece.tool_calls:
            if not call.offset:
                function = {"name": call.name, "arguments": ""}
                opening = {"index": call.index, "id": call.id, "type": "function", "function": function}
                yield self._chunk(piece.index, {"tool_calls": [opening]}, None, None)
            rest = {"index": call.index, "function": {"arguments": call.arguments}}
            yield self._chunk(piece.index, {"tool_calls": [rest]}, None, None)

    def closing(self, index: int, result: GenerateResult) -> Json:
        """Returns the last chunk of an output."""
        chunk = self._chunk(index, {}, None, result.outputs[index].finish_reason)
        return chunk | {"graftwerk": self._extension(result)}

    def usage(self, result: GenerateResult) -> Json:
        """Returns the chunk after all others, with the usage."""
        own = {"choices": [], "usage": usage_of(result.outputs), "graftwerk": self._extension(result)}
        return self._header(is_chunk=True) | own

    def logprobs(self, items: Sequence[Logprob] | None, *, offset: int = 0) -> Json | None:
        """Returns log-probabilities in the endpoint's form, without the token that ends an output.

        `offset` counts the characters of the output before the first item.
        """
        if items is None:
            return None
        shown = [item for item in items if not item.special]
        return _chat_logprobs(shown) if self.is_chat else _completion_logprobs(shown, offset)

    def _header(self, *, is_chunk: bool) -> Json:
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.job.id}",
            "object": f"{kind}.chunk" if is_chunk and self.is_chat else kind,
            "created": int(self.job.created_at.timestamp()),
            "model": self.model,
            "system_fingerprint": None,
        }

    def _choice(self, index: int, output: Output) -> Json:
        text = output.text or ""
        if self.echo:
            text = output.prompt + text
        message = {"message": self._message(output)} if self.is_chat else {}
        return {
            "index": index,
            **(message if self.is_chat else {"text": text}),
            "logprobs": self._echoed_logprobs(output) if self.echo else self.logprobs(output.logprobs),
            "finish_reason": output.finish_reason,
        }

    def _message(self, output: Output) -> Json:
        message: Json = {"role": "assistant", "content": output.text or "", "refusal": None}
        if output.reasoning is not None:
            message["reasoning_content"] = output.reasoning
        if output.tool_calls:
            message["content"] = output.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in output.tool_calls
            ]
        return message

    def _echoed_logprobs(self, output: Output) -> Json | None:
        # with special tokens: clients tell the prompt's tokens from new ones by their number alone
        items = [*(output.prompt_logprobs or []), *(output.logprobs or [])]
        if not items:
            return None
        logprobs = _completion_logprobs(items, 0)
        if output.prompt_logprobs:  # nothing is before the first token
            logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None
        return logprobs

    def _chunk(self, index: int, delta: Json, logprobs: Json | None, finish_reason: str | None) -> Json:
        text: Json = {"delta": delta} if self.is_chat else {"text": delta.get("content", "")}
        choice = {"index": index, **text, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._header(is_chunk=True) | {"choices": [choice]}

    def _extension(self, result: GenerateResult) -> Json:
        ignored = list(dict.fromkeys([*self.ignored, *(result.ignored or [])]))
        return extension(self.job, ignored, result.engine) | facts_of(result)


def extension(job: Job, ignored: Sequence[str], engine: Engine | None) -> Json:
    """Returns the field `graftwerk` of a response: the job, what computed, and the parameters that were left out."""
    return {"job": job.id, "engine": engine, "ignored": list(ignored)}


def facts_of(result: GenerateResult) -> Json:
    """Returns the facts of a result that the field `graftwerk` has too: the template, and warnings of outputs if there are any."""
    warnings = [text for output in result.outputs for text in output.warnings or []]
    return {"template": result.template, **({"warnings": warnings} if warnings else {})}


def json_object(value: Any) -> Response:
    """Returns a JSON object as a response that is never cached."""
    response = Response(json.dumps(value, ensure_ascii=False), mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def usage_of(outputs: Sequence[Output]) -> Json:
    """Returns the tokens of all outputs together; a prompt with several outputs counts once. Thinking is counted apart."""
    usages = [(output.index, output.usage) for output in outputs if output.usage is not None]
    prompt = sum(usage.prompt_tokens for index, usage in usages if index == 0)
    completion = sum(usage.completion_tokens for _, usage in usages)
    total: Json = {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
    }  # fmt: skip
    thinking = [usage.reasoning_tokens for _, usage in usages if usage.reasoning_tokens is not None]
    if thinking:
        total["completion_tokens_details"] = {"reasoning_tokens": sum(thinking)}
    return total


def _chat_logprobs(items: Sequence[Logprob]) -> Json:
    content = [_chat_token(item) | {"top_logprobs": list(map(_chat_token, item.top))} for item in items]
    return {"content": content, "refusal": None}


def _chat_token(item: Logprob) -> Json:
    data = token_bytes(item.token)
    return {"token": token_text(item.token), "logprob": _logprob(item), "bytes": list(data)}


def _completion_logprobs(items: Sequence[Logprob], offset: int) -> Json:
    tokens = [token_text(item.token) for item in items]
    offsets = [offset + sum(map(len, tokens[:number])) for number in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [_logprob(item) for item in items],
        "top_logprobs": [_likeliest(item.top) for item in items],
        "text_offset": offsets,
    }


def _likeliest(tops: Sequence[Logprob]) -> dict[str, float]:
    """Returns the most likely tokens by their text; of several with one text (bytes of a character) the most likely counts."""
    likeliest: dict[str, float] = {}
    for top in tops:
        likeliest.setdefault(token_text(top.token), _logprob(top))
    return likeliest


def _logprob(item: Logprob) -> float:
    return ZERO_PROBABILITY if item.logprob is None else item.logprob


def token_bytes(piece: str) -> bytes:
    """Returns the bytes of a piece of a SentencePiece vocabulary (`▁Hello`, `<0xE4>`)."""
    found = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(found[1], 16)]) if found else piece.replace("▁", " ").encode()


def token_text(piece: str) -> str:
    """Returns a piece as text; a byte that is not a character by itself becomes U+FFFD."""
    return token_bytes(piece).decode("utf-8", "replace")
