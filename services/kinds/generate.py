"""`generate`: a model continues prompts or a conversation."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from services.kinds.shared import (
    Failure,
    JobResult,
    ModelRequest,
    PromptOptions,
    Result,
    ServedName,
    Usage,
)


class GenerateRequest(ModelRequest, PromptOptions):
    """Generate text from one prompt, many prompts or a conversation."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Generate text",
        "value": {
            "kind": "generate",
            "model": "chinese-alpaca-7b",
            "prompt": "Tell me about alpacas.",
            "template": "alpaca",
            "sampling": {"temperature": 0, "max_new_tokens": 64},
        },
    }

    kind: Literal["generate"]
    model: ServedName = Field(
        description="A model of the volume, or one of the server of `GENERATE_BACKEND_URL`."
    )
    prompts_file: str | None = Field(
        default=None, max_length=1024, description="A file of prompts on the volume, under `incoming/`."
    )
    return_token_ids: bool = False
    forward: bool = Field(
        default=True,
        description="false: a worker of this service generates, even if the server of `GENERATE_BACKEND_URL` has the model.",
    )

    @property
    def is_forwardable(self) -> bool:
        """True unless the request says how to load a model of the volume, or asks for a worker of this service."""
        loads = self.adapters or self.quantization is not None or self.rope_alpha is not None
        return self.forward and not loads


class Logprob(Result):
    """Natural log-probability of a token, null for minus infinity, and of the most likely tokens at its position."""

    token: str
    token_id: int | None = None
    logprob: float | None
    special: bool = False
    top: list["Logprob"] = []


class Output(Result):
    """One output of a prompt: its text, or the error in its place."""

    prompt: str
    index: int = 0
    text: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    seed: int | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    dropped_turns: int | None = None
    logprobs: list[Logprob] | None = None
    error: Failure | None = None


class ComputedBy(Result):
    """Device and speed of a generation; `backend` is the address of another server that generated."""

    template: str | None = None
    seconds: float
    tokens_per_second: float
    device: str | None
    dtype: str | None
    backend: str | None = None


class GenerateResult(JobResult, ComputedBy):
    """Outputs in the prompts' order. The other fields belong to jobs with a file of prompts, whose outputs are in files."""

    outputs: list[Output]
    prompts: int | None = None
    answered: int | None = None
    failed: int | None = None
    resumed: int | None = None
    usage: Usage | None = None
    results_file: str | None = None
    predictions_file: str | None = None


class TokenPiece(Result):
    """New text of one output, on its way from the engine to a client: the data of a `token` event.

    `offset` counts the characters of the output before this piece; a job that is run again starts at 0 again.
    """

    index: int
    offset: int
    text: str
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: list[Logprob] | None = None
