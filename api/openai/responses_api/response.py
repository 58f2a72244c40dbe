"""The response object of a job, in every state of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.openai.errors import error_object, error_of
from api.openai.job_waiter import generated
from api.openai.responses import ResponseBuilder, extension, facts_of
from api.openai.responses_api.items import Json
from api.openai.responses_api.kept import Kept, Note, response_id
from api.responses import job_responses
from services.errors import GraftwerkError
from services.jobs.status import Job, JobStatus
from services.kinds.generate import GenerateResult, Logprob, Output
from services.kinds.tools import ToolCall, ToolCallPiece

STATUSES: Mapping[JobStatus, str] = {
    "queued": "queued",
    "running": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
    "canceled": "cancelled",
}

ERROR_CODES = {"invalid_request_error": "invalid_prompt", "rate_limit_error": "rate_limit_exceeded"}
"""Codes of a failed response by the type of the error; any other is `server_error`."""


@dataclass(frozen=True, slots=True)
class ResponseObject:
    """Builds the response of a job."""

    job: Job
    note: Note

    @classmethod
    def of(cls, kept: Kept) -> Json:
        """Returns the present response of a kept one's job."""
        own = cls(kept.job, kept.note)
        if kept.job.status == "queued":
            (shown,) = job_responses([kept.job])
            waiting_for = None if shown.waiting_for is None else shown.waiting_for.model_dump()
            return own.open("queued", waiting_for=waiting_for)
        if kept.job.status != "succeeded":
            error = None if kept.job.error is None else error_of(kept.job.error)
            is_failed = kept.job.status == "failed"
            return own.open(STATUSES[kept.job.status], error if is_failed else None)
        try:
            return own.whole(generated(kept.job))
        except GraftwerkError as error:
            return own.open("failed", error)

    def open(
        self, status: str, error: GraftwerkError | None = None, *, waiting_for: Json | None = None
    ) -> Json:
        """Returns a response without output: one that is not completed, or has failed; `waiting_for` is what its job waits for."""
        own: Json = {"error": None if error is None else _error(error), "output": [], "usage": None}
        facts = extension(self.job, self.note.ignored, None)
        if waiting_for is not None:
            facts["waiting_for"] = waiting_for
        return self._header(status) | own | {"graftwerk": facts}

    def whole(self, result: GenerateResult, items: Sequence[Json] | None = None) -> Json:
        """Returns the completed response; `items` are those that were streamed, by default those of the result."""
        (output,) = result.outputs
        own = {
            "completed_at": None if self.job.finished_at is None else int(self.job.finished_at.timestamp()),
            "incomplete_details": {"reason": "max_output_tokens"} if is_incomplete(output) else None,
            "output": self._items(output) if items is None else [*items],
            "usage": _usage(output),
            "graftwerk": extension(self.job, self._ignored(result), result.engine) | facts_of(result),
        }
        return self._header("incomplete" if is_incomplete(output) else "completed") | own

    def message(self, index: int, text: str, logprobs: Sequence[Logprob] | None, status: str) -> Json:
        """Returns an item with text, the one at `index` of the output."""
        content = [self.text_part(text, logprobs)] if status != "in_progress" else []
        return {
            "id": self.item_id("msg", index), "type": "message", "role": "assistant", "status": status, "content": content,
        }  # fmt: skip

    def item_id(self, prefix: str, index: int) -> str:
        """Returns the id of the item at `index` of the output."""
        return f"{prefix}_{self.job.id}_{index}"

    def text_part(self, text: str, logprobs: Sequence[Logprob] | None) -> Json:
        """Returns the part of a message with its text."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs(logprobs)}

    def logprobs(self, items: Sequence[Logprob] | None) -> list[Json]:
        """Returns log-probabilities, without that of the token which ends the output."""
        builder = ResponseBuilder(job=self.job, model="", is_chat=True, ignored=())
        found = builder.logprobs(items)
        return [] if found is None else list(found["content"])

    def _items(self, output: Output) -> list[Json]:
        found: list[Json] = []
        if output.reasoning:
            found.append(reasoning_item(self.item_id("rs", 0), output.reasoning, "completed"))
        calls = output.tool_calls or []
        if output.text or not calls:
            status = "completed" if calls else status_of_item(output)
            found.append(self.message(len(found), output.text or "", output.logprobs, status))
        for call in calls:
            found.append(call_item(self.item_id("fc", len(found)), call, status_of_call(call)))
        return found

    def _ignored(self, result: GenerateResult) -> list[str]:
        return list(dict.fromkeys([*self.note.ignored, *(result.ignored or [])]))

    def _header(self, status: str) -> Json:
        own: Json = {
            "id": response_id(self.job), "object": "response", "created_at": int(self.job.created_at.timestamp()),
            "status": status, "completed_at": None, "error": None, "incomplete_details": None, "service_tier": "default",
        }  # fmt: skip
        return own | self.note.echo


def reasoning_item(item_id: str, text: str, status: str) -> Json:
    """Returns an item with thinking."""
    content = [] if status == "in_progress" else [{"type": "reasoning_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}


def call_item(item_id: str, call: ToolCall | ToolCallPiece, status: str) -> Json:
    """Returns an item with a call of a function."""
    return {
        "id": item_id, "type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments,
        "status": status,
    }  # fmt: skip


def is_incomplete(output: Output) -> bool:
    """Returns True if an output ends at the limit of tokens."""
    return output.finish_reason == "length"


def status_of_item(output: Output) -> str:
    """Returns the status of the last item of an output."""
    return "incomplete" if is_incomplete(output) else "completed"


def status_of_call(call: ToolCall | ToolCallPiece) -> str:
    """Returns the status of a call, whose arguments may be cut off."""
    try:
        json.loads(call.arguments)
    except (ValueError, RecursionError):
        return "incomplete"
    return "completed"


def _usage(output: Output) -> Json | None:
    usage = output.usage
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.total_tokens,
    }


def _error(error: GraftwerkError) -> Json:
    found = error_object(error)["error"]
    return {"code": ERROR_CODES.get(found["type"], "server_error"), "message": found["message"]}
