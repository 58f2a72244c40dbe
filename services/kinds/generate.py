"""`generate`: a model continues prompts or a conversation."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.generate_engines import Engine
from services.kinds.shared import (
    PROMPTS_LIMIT,
    Failure,
    JobResult,
    ModelRequest,
    Result,
    ServedName,
    TokenIds,
    Usage,
)
from services.kinds.tools import ToolCall, ToolCallPiece, ToolOptions

AdapterUse = Literal["merged", "unmerged"]


class GenerateRequest(ModelRequest, ToolOptions):
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
    prompt_token_ids: TokenIds | Annotated[list[TokenIds], Field(max_length=PROMPTS_LIMIT)] | None = Field(
        default=None,
        description="Token ids of a prompt, or of several, read as they are: no template, no beginning-of-text token.",
    )
    score_prompt: bool = Field(
        default=False,
        description="Returns the log-probability of each token of the prompts, and of `sampling.logprobs` most likely ones.",
    )
    exact: bool = Field(
        default=False,
        description="true: adapters are merged into a copy of the model, whose values are those of a merge job.",
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
        needs_engine = self.score_prompt or self.prompt_token_ids is not None
        return self.forward and not (loads or needs_engine)

    @property
    def applies_unmerged(self) -> bool:
        """True if adapters are to be applied next to the model's own weights, where that is possible."""
        return bool(self.adapters) and not self.exact and self.quantization is None

    @property
    def prompt_count(self) -> int:
        """Number of prompts in the request; a conversation is one, a file counts as one."""
        return len(self.prompts or self.token_id_prompts or [None])

    @property
    def token_id_prompts(self) -> list[list[int]]:
        """The prompts that are given as token ids."""
        given = self.prompt_token_ids or []
        return [[*given]] if given and isinstance(given[0], int) else [[*ids] for ids in given]  # type: ignore[misc]

    @model_validator(mode="after")
    def _token_ids_are_the_whole_prompt(self) -> Self:
        names = [name for name in ("template", "system", "input") if getattr(self, name) is not None]
        if self.prompt_token_ids is not None and names:
            raise ValueError(
                f"{names[0]} writes text around a prompt, and prompt_token_ids are read as they are"
            )
        return self

    @model_validator(mode="after")
    def _scores_fit_the_request(self) -> Self:
        if self.score_prompt and self.sampling.num_beams > 1:
            raise ValueError("score_prompt is not available with a beam search: set num_beams to 1")
        if self.score_prompt and self.prompts_file is not None:
            raise ValueError(
                "score_prompt is not available with prompts_file: send the prompts in the request"
            )
        return self


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
    reasoning: str | None = Field(
        default=None, description="What a thinking model wrote before its answer; `text` is the answer alone."
    )
    tool_calls: list[ToolCall] | None = Field(
        default=None,
        description="Calls of the tools that were offered; `text` is what the model wrote around them.",
    )
    warnings: list[str] | None = Field(
        default=None,
        description="Sentences on texts that open a call of a tool and are not one: they stay text.",
    )
    finish_reason: str | None = None
    stop_string: str | None = Field(
        default=None, description="The text of `sampling.stop`, or of the template, that ended the output."
    )
    usage: Usage | None = None
    seed: int | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    dropped_turns: int | None = None
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob] | None = Field(
        default=None,
        description="With `score_prompt`: each token of the prompt. The first has no log-probability: null.",
    )
    error: Failure | None = None


class ComputedBy(Result):
    """Engine, device and speed of a generation; `backend` is the address of another server that generated.

    `adapters` says how adapters were applied: merged into a copy of the model, or unmerged, next to its weights.
    """

    template: str | None = None
    seconds: float
    tokens_per_second: float
    device: str | None
    dtype: str | None
    backend: str | None = None
    engine: Engine | None = None
    adapters: AdapterUse | None = None
    ignored: list[str] | None = Field(
        default=None, description="Fields of the request that were left out, `tools` for example."
    )


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

    `offset` counts the characters of the output before this piece, `reasoning_offset` those of its reasoning; a job that is run
    again starts at 0 again. The first piece of an output has the number of its prompt's tokens.
    """

    index: int
    offset: int
    text: str
    prompt_tokens: int | None = None
    reasoning: str = ""
    reasoning_offset: int = 0
    tool_calls: list[ToolCallPiece] = []
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: list[Logprob] | None = None
