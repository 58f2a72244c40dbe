"""Answers in OpenAI's shapes: whole ones, and the chunks of a stream."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.jobs.status import Job

Json = dict[str, Any]

NO_CHANCE = -9999.0
"""OpenAI's logarithm of a probability of zero, which JSON has no number for."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class ResponseBuilder:
    """What the answer and every chunk of it begin with."""

    job: Job
    model: str
    is_chat: bool

    def fields(self, *, chunk: bool) -> Json:
        """Id, kind, time and model. The id contains the job's."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.job.id}",
            "object": f"{kind}.chunk" if chunk and self.is_chat else kind,
            "created": int(self.job.created_at.timestamp()),
            "model": self.model,
            "system_fingerprint": None,
        }

    def whole(self, result: Json) -> Json:
        """The answer to a request that is not streamed."""
        choices = [self._choice(index, output) for index, output in enumerate(result["outputs"])]
        more = {"choices": choices, "usage": usage_of(result["outputs"]), "graftwerk": self._own(result)}
        return self.fields(chunk=False) | more

    def _choice(self, index: int, output: Json) -> Json:
        choice: Json = {"index": index}
        if self.is_chat:
            choice["message"] = {"role": "assistant", "content": output["text"], "refusal": None}
        else:
            choice["text"] = output["text"]
        logprobs = self.logprobs(output.get("logprobs"))
        return choice | {"logprobs": logprobs, "finish_reason": output["finish_reason"]}

    def opening(self, index: int) -> Json:
        """The chunk that begins an answer of a chat."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, text: str, logprobs: Sequence[Json] | None, *, offset: int) -> Json:
        """A chunk with new text, which begins `offset` characters into the answer."""
        return self._chunk(index, {"content": text}, self.logprobs(logprobs, offset=offset), None)

    def closing(self, index: int, output: Json, result: Json) -> Json:
        """The last chunk of an answer."""
        return self._chunk(index, {}, None, output["finish_reason"]) | {"graftwerk": self._own(result)}

    def counting(self, result: Json) -> Json:
        """The chunk after all others, with the usage."""
        return self.fields(chunk=True) | {"choices": [], "usage": usage_of(result["outputs"])}

    def _chunk(self, index: int, delta: Json, logprobs: Json | None, finish_reason: str | None) -> Json:
        news: Json = {"delta": delta} if self.is_chat else {"text": delta.get("content", "")}
        choice = {"index": index, **news, "logprobs": logprobs, "finish_reason": finish_reason}
        return self.fields(chunk=True) | {"choices": [choice]}

    def _own(self, result: Json) -> Json:
        return {"job": self.job.id, "template": result["template"]}

    def logprobs(self, items: Sequence[Json] | None, *, offset: int = 0) -> Json | None:
        """A job's log-probabilities in the endpoint's own form; the token that ends an answer is left out."""
        if items is None:
            return None
        shown = [item for item in items if not item.get("special")]
        return _chat_logprobs(shown) if self.is_chat else _completion_logprobs(shown, offset)


def usage_of(outputs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Tokens of all answers together; a prompt with several answers counts once."""
    prompt = sum(output["usage"]["prompt_tokens"] for output in outputs if output["index"] == 0)
    completion = sum(output["usage"]["completion_tokens"] for output in outputs)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chat_logprobs(items: Sequence[Json]) -> Json:
    content = [_chat_token(item) | {"top_logprobs": list(map(_chat_token, _top(item)))} for item in items]
    return {"content": content, "refusal": None}


def _chat_token(item: Json) -> Json:
    data = token_bytes(item["token"])
    return {"token": token_text(item["token"]), "logprob": _logprob(item), "bytes": list(data)}


def _completion_logprobs(items: Sequence[Json], offset: int) -> Json:
    tokens = [token_text(item["token"]) for item in items]
    offsets = [offset + sum(map(len, tokens[:number])) for number in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [_logprob(item) for item in items],
        "top_logprobs": [{token_text(top["token"]): _logprob(top) for top in _top(item)} for item in items],
        "text_offset": offsets,
    }


def _top(item: Json) -> list[Json]:
    return list(item.get("top", []))


def _logprob(item: Json) -> float:
    return NO_CHANCE if item["logprob"] is None else float(item["logprob"])


def token_bytes(piece: str) -> bytes:
    """The bytes that a piece of a SentencePiece vocabulary stands for (`▁Hello`, `<0xE4>`)."""
    found = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(found[1], 16)]) if found else piece.replace("▁", " ").encode()


def token_text(piece: str) -> str:
    """The same as text; a byte that is no character alone shows as U+FFFD."""
    return token_bytes(piece).decode("utf-8", "replace")
