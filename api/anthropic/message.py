"""The message that a job generates, in Anthropic's shape."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_core import from_json

from api.anthropic.blocks import Json
from api.openai.responses import extension, facts_of
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, Output
from services.kinds.tools import ToolCall, ToolCallPiece


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageBuilder:
    """Builds the message of a job. `ignored` names the parameters of the request that were left out."""

    job: Job
    model: str
    stop_sequences: Sequence[str]
    max_tokens: int
    ignored: Sequence[str]

    def whole(self, result: GenerateResult) -> Json:
        """Returns the message."""
        (output,) = result.outputs
        content = [thinking_block(output.reasoning)] if output.reasoning else []
        content += [text_block(output.text)] if output.text else []
        content += [tool_use_block(call, _input_of(call)) for call in output.tool_calls or []]
        own = {"content": content, **self.end(output), "usage": usage_of(output)}
        return self._header() | own | {"graftwerk": self.extension(result)}

    def opening(self, prompt_tokens: int) -> Json:
        """Returns the message before its first text."""
        usage = {"input_tokens": prompt_tokens, "output_tokens": 0}
        return self._header() | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}

    def end(self, output: Output) -> Json:
        """Returns why an output ended."""
        by_client = output.finish_reason == "stop" and output.stop_string in self.stop_sequences
        return {
            "stop_reason": "stop_sequence" if by_client else self._reason(output),
            "stop_sequence": output.stop_string if by_client else None,
        }

    def extension(self, result: GenerateResult) -> Json:
        """Returns the field `graftwerk` of a message."""
        ignored = list(dict.fromkeys([*self.ignored, *(result.ignored or [])]))
        return extension(self.job, ignored, result.engine) | facts_of(result)

    def _reason(self, output: Output) -> str:
        if output.finish_reason != "length":
            return "tool_use" if output.finish_reason == "tool_calls" else "end_turn"
        is_full = output.usage is not None and output.usage.completion_tokens < self.max_tokens
        return "model_context_window_exceeded" if is_full else "max_tokens"

    def _header(self) -> Json:
        return {"id": f"msg_{self.job.id}", "type": "message", "role": "assistant", "model": self.model}


def _input_of(call: ToolCall) -> Json:
    """Returns the arguments of a call; of one that the limit of tokens has cut off, those that are there."""
    found: Json = from_json(call.arguments, allow_partial="trailing-strings")
    return found


def text_block(text: str) -> Json:
    """Returns a block of text."""
    return {"type": "text", "text": text, "citations": None}


def thinking_block(text: str) -> Json:
    """Returns a block of thinking; nothing here needs a signature."""
    return {"type": "thinking", "thinking": text, "signature": ""}


def tool_use_block(call: ToolCall | ToolCallPiece, value: Json) -> Json:
    """Returns a block with a call of a tool."""
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": value}


def usage_of(output: Output) -> Json:
    """Returns the counts of tokens of an output."""
    usage = output.usage
    thinking = None if usage is None else usage.reasoning_tokens
    return {
        "output_tokens_details": None if thinking is None else {"thinking_tokens": thinking},
        "input_tokens": 0 if usage is None else usage.prompt_tokens,
        "output_tokens": 0 if usage is None else usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
