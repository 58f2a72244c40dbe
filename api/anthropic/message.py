"""The message that a job generates, in Anthropic's shape."""

from collections.abc import Sequence
from dataclasses import dataclass

from api.anthropic.blocks import Json
from api.openai.responses import extension
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, Output


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
        content = [text_block(output.text)] if output.text else []
        own = {"content": content, **self.end(output), "usage": usage_of(output)}
        return self._header() | own | {"graftwerk": self.extension(result)}

    def opening(self) -> Json:
        """Returns the message before its first text. The tokens of its prompt are counted at the end."""
        usage = {"input_tokens": 0, "output_tokens": 0}
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
        return extension(self.job, self.ignored, result.engine) | {"template": result.template}

    def _reason(self, output: Output) -> str:
        if output.finish_reason != "length":
            return "end_turn"
        is_full = output.usage is not None and output.usage.completion_tokens < self.max_tokens
        return "model_context_window_exceeded" if is_full else "max_tokens"

    def _header(self) -> Json:
        return {"id": f"msg_{self.job.id}", "type": "message", "role": "assistant", "model": self.model}


def text_block(text: str) -> Json:
    """Returns a block of text."""
    return {"type": "text", "text": text, "citations": None}


def usage_of(output: Output) -> Json:
    """Returns the counts of tokens of an output."""
    usage = output.usage
    return {
        "input_tokens": 0 if usage is None else usage.prompt_tokens,
        "output_tokens": 0 if usage is None else usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
