"""Parts that several kinds of job share: the root of requests and results, model names, adapters, prompts, outputs."""

from typing import Annotated, Any, ClassVar, Literal, Self, get_args
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)

from services.bounded_text import listed
from services.kinds.webhook import WebhookTarget
from services.names import MODEL_NAME_PATTERN, SERVED_NAME_PATTERN, is_reserved
from services.sampling import Sampling
from services.templates import Message
from services.validation import is_none

NO_TOKEN_LIMIT = 1_000_000
"""Limit of new tokens of a request without one: `fit_context` lowers it to the rest of the model's context."""

MAX_STREAMED_OUTPUTS = 16
"""Largest number of outputs for which a generate job publishes `token` events."""

PROMPTS_LIMIT = 10_000
"""Most prompts of a request; more belong in a file on the volume."""

MESSAGES_LIMIT = 1000
"""Most messages of a conversation."""

UNKNOWN_LIMIT = 100
"""Unknown fields of an object up to which each is an error of its own."""

PROMPT_FIELDS = ("prompt", "prompts", "prompts_file", "messages", "prompt_token_ids")
"""Fields of which a request must have exactly one, as far as its kind has them."""

_BYTE_SIZE = TypeAdapter(ByteSize)


def parse_size(text: str) -> int:
    """Returns the bytes of a size such as "5GB" (decimal, as transformers counts) or "512MiB".

    Raises:
        ValueError: the text is not a size, or is less than one byte.
    """
    size_bytes = int(_BYTE_SIZE.validate_python(text))
    if size_bytes < 1:
        raise ValueError(f"a size must be at least one byte, not {text!r}")
    return size_bytes


def _check_size(text: str) -> str:
    try:
        parse_size(text)
    except ValueError as error:
        raise ValueError(
            f'a size looks like "5GB", "500MB" or "2GiB" and is at least one byte, not {text!r}'
        ) from error
    return text


def _check_not_reserved(name: str) -> str:
    if is_reserved(name):
        raise ValueError(f"{name!r} is a folder of the volume itself and cannot name a model")
    return name


ServedName = Annotated[str, Field(pattern=SERVED_NAME_PATTERN), AfterValidator(_check_not_reserved)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN), AfterValidator(_check_not_reserved)]
Size = Annotated[str, AfterValidator(_check_size), Field(examples=["5GB"])]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
GgufDType = Literal[
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q2_k_s", "q3_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k", "q4_k_s", "q4_k_m",
    "q5_k", "q5_k_s", "q5_k_m", "q6_k", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "iq3_s",
    "iq3_m", "iq4_nl", "iq4_xs",
]  # fmt: skip
"""Mixes of block encodings by llama-quantize's names."""

DType = Literal["float32", "float16", "bfloat16"] | GgufDType
OutputFormat = Literal["huggingface", "meta", "gguf"]
Quantization = Literal["8bit", "4bit"]


class Shape(BaseModel):
    """Root of all request models: unknown fields are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_unknown_fields(cls, value: Any) -> Any:
        # pydantic would make an error of each
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + UNKNOWN_LIMIT:
            unknown = [name for name in value if name not in cls.model_fields]
            raise ValueError(f"{len(unknown)} fields are unknown: {listed(unknown)}")
        return value


class JobRequest(Shape):
    """Fields of every request; `reads` and `makes` name its models."""

    example: ClassVar[dict[str, Any]] = {}
    """A request of this kind for the OpenAPI document, with a `summary`."""

    kind: str
    after: list[UUID] = Field(default=[], max_length=64, description="Jobs that must have succeeded first.")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        default={}, max_length=16, description="Up to 16 pairs of your own, given back with the job."
    )
    webhook: WebhookTarget | None = Field(
        default=None, description="Where a signed message of the job's end is sent."
    )

    def asks_same_as(self, other: "JobRequest") -> bool:
        """Returns True if both ask for the same job; their webhooks may differ."""
        return self.model_copy(update={"webhook": None}) == other.model_copy(update={"webhook": None})

    @property
    def reads(self) -> list[str]:
        """Names of the models that the job reads, each once, in the order of the request."""
        return []

    @property
    def makes(self) -> str | None:
        """Name of the model that the job makes, None if it makes none."""
        return None

    @property
    def uploads(self) -> list[str]:
        """Ids of the uploads that the job needs."""
        return []

    @property
    def asks_hub(self) -> bool:
        """True if a model hub is asked before the job is queued; nothing else of the request is read then."""
        return False

    @property
    def is_forwardable(self) -> bool:
        """True if the server of `GENERATE_BACKEND_URL` may run the job, provided that it has the model."""
        return False


class MakeRequest(JobRequest):
    """A request that makes a model."""

    target: ModelName

    @property
    def makes(self) -> str:
        """Name of the model that the job makes."""
        return self.target

    @model_validator(mode="after")
    def _target_is_new(self) -> Self:
        if self.target.lower() in {name.lower() for name in self.reads}:
            raise ValueError(
                f"target {self.target!r} is one of the inputs: a model never overwrites its input"
            )
        return self


class Result(BaseModel):
    """Root of all parts of results. Fields that this version does not know are kept: records outlive upgrades."""

    model_config = ConfigDict(extra="allow", frozen=True)


class JobResult(Result):
    """Result of a succeeded job; only the fields that were set are stored and returned."""


class Failure(Result):
    """Error in place of one output: a stable code, what happened and what to do."""

    code: str
    message: str
    hint: str = ""


class Usage(Result):
    """Counts of tokens under OpenAI's names."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int
    reasoning_tokens: int | None = Field(
        default=None, description="Those of `completion_tokens` that are thinking."
    )


class AdapterChoice(Shape):
    """One adapter and the factor on its change."""

    name: ModelName
    scale: float = Field(default=1.0, ge=-100, le=100, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=500_000)]
"""Token ids of a text."""


def unique_names(*names: str | None) -> list[str]:
    """Returns the names that are given, each once, in order."""
    return list(dict.fromkeys(name for name in names if name is not None))


class ImatrixSource(Shape):
    """Source of an importance matrix: a text to compute it from, or a file of llama-imatrix."""

    text_file: str | None = Field(
        default=None,
        max_length=1024,
        exclude_if=is_none,
        description="A UTF-8 text on the volume, under `incoming/`: at most 32 chunks of 512 tokens are used.",
    )
    file: str | None = Field(
        default=None,
        max_length=1024,
        exclude_if=is_none,
        description="An importance matrix in GGUF on the volume, under `incoming/`.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.text_file is None) == (self.file is None):
            raise ValueError("imatrix has exactly one of text_file and file")
        return self


class OutputOptions(Shape):
    """Options of a written model."""

    output_format: OutputFormat = "huggingface"
    dtype: DType | None = Field(
        default=None, description="null keeps each tensor's own; q8_0, q4_k_m and the like are of `gguf`."
    )
    max_shard_size: Size = Field(default="5GB", description="Of a `huggingface` output.")
    ranks: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Rank count of a `meta` output; null: as many as the input has.",
    )
    imatrix: ImatrixSource | None = Field(
        default=None,
        exclude_if=is_none,
        description="Of a `gguf` output in blocks: the importance of each matrix's columns, by which errors are weighed.",
    )
    force: bool = Field(
        default=False, description="Compute it even if the same request has made the same model before."
    )

    @property
    def max_shard_bytes(self) -> int:
        """`max_shard_size` in bytes."""
        return parse_size(self.max_shard_size)

    @model_validator(mode="after")
    def _options_fit_the_format(self) -> Self:
        if self.ranks is not None and self.output_format != "meta":
            raise ValueError(
                f"ranks = {self.ranks} applies to output_format 'meta' only, the request has {self.output_format!r}"
            )
        if self.dtype in get_args(GgufDType) and self.output_format != "gguf":
            raise ValueError(
                f"dtype {self.dtype!r} is an encoding of output_format 'gguf', the request has {self.output_format!r}"
            )
        if self.imatrix is not None and (self.dtype not in get_args(GgufDType) or self.dtype == "q8_0"):
            raise ValueError(
                f"imatrix applies to the types of output_format 'gguf' that weigh columns, such as 'q4_k_m'; the request has "
                f"dtype {self.dtype!r}"
            )
        return self


class ModelChoice(Shape):
    """A model and how it is loaded: with adapters on the fly, quantized, with scaled positions."""

    model: ModelName
    adapters: list[AdapterChoice] = Field(default=[], max_length=8)
    quantization: Quantization | None = None
    rope_alpha: float | None = Field(default=None, gt=0, le=64)

    @property
    def names(self) -> list[str]:
        """The model's name and those of its adapters."""
        return unique_names(self.model, *(adapter.name for adapter in self.adapters))


class ModelRequest(JobRequest, ModelChoice):
    """A request that one loaded model answers."""

    @property
    def reads(self) -> list[str]:
        """The model and its adapters."""
        return self.names


class PromptOptions(Shape):
    """Prompt, template and sampling of a request."""

    prompt: str | None = Field(default=None, max_length=1_000_000)
    prompts: list[Annotated[str, Field(max_length=1_000_000)]] | None = Field(
        default=None, min_length=1, max_length=PROMPTS_LIMIT
    )
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=MESSAGES_LIMIT)
    template: str | None = Field(
        default=None,
        max_length=64,
        description="A template's name, or \"model\" for the model's own. null continues a prompt without one; a "
        "conversation gets the model's own or, where it has none, the one that fits its lineage.",
    )
    system: str | None = Field(default=None, max_length=100_000)
    input: str | None = Field(default=None, max_length=1_000_000)
    sampling: Sampling = Sampling()
    fit_context: bool | Literal["answer"] = Field(
        default=False,
        description="true drops a conversation's oldest turns where it is too long for the model's context, and lowers "
        'max_new_tokens to what the context leaves; "answer" does the latter alone; false refuses what does not fit.',
    )

    @model_validator(mode="after")
    def _one_kind_of_prompt(self) -> Self:
        names = [n for n in PROMPT_FIELDS if n in type(self).model_fields]
        given = [n for n in names if getattr(self, n) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"exactly one of {', '.join(names)} is needed, found {found}")
        return self
