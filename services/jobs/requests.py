"""What may be asked of Graftwerk: one pydantic model a kind, used by both doors.

The API parses a request with these, the queue carries it as JSON, and the worker parses it again.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self, get_args
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    field_validator,
    model_validator,
)

from services.sampling import Sampling

MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
"""A model is a folder of this name on the volume."""

SERVED_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,255}$"
"""The name of another server's model, such as `llama3:8b` or `org/name`."""

AS_MANY_AS_FIT = 1_000_000
"""New tokens where no limit is asked for: `fit_context` lowers it to the room in the model's context."""

RESERVED_NAMES = ("incoming", "results")
"""Folders of the volume that are no models."""

TOLD_ANSWERS = 16
"""A generate job of at most so many answers tells their text as it grows (`token` events)."""

PROMPT_FIELDS = ("prompt", "prompts", "prompts_file", "messages")
"""Exactly one of them is given, where a request has them."""

COMPARED_PROMPTS = 256
"""Most prompts of a compare job: its result holds every variant's answers to each of them."""

SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a size such as "5GB" (decimal, as transformers counts) or "512MiB"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in SIZE_UNITS:
        raise ValueError(f'a size looks like "5GB", "500MB" or "2GiB", not {text!r}')
    size_bytes = int(float(match[1]) * SIZE_UNITS[match[2].upper()])
    if size_bytes < 1:
        raise ValueError(f"a size must be at least one byte, not {text!r}")
    return size_bytes


def _not_reserved(name: str) -> str:
    if name.lower() in RESERVED_NAMES:
        raise ValueError(f"{name!r} is a folder of the volume itself and cannot name a model")
    return name


def _checked_size(text: str) -> str:
    parse_size(text)
    return text


ServedName = Annotated[str, Field(pattern=SERVED_NAME_PATTERN), AfterValidator(_not_reserved)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN), AfterValidator(_not_reserved)]
Size = Annotated[str, AfterValidator(_checked_size), Field(examples=["5GB"])]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
DType = Literal["float32", "float16", "bfloat16", "q8_0"]


class Shape(BaseModel):
    """The root of all request shapes: unknown fields are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JobRequest(Shape):
    """What every kind of request may carry."""

    after: list[UUID] = Field(default=[], max_length=64, description="Jobs that must have succeeded first.")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        default={}, max_length=16, description="Up to 16 pairs of your own, given back with the job."
    )


class PathSource(Shape):
    """A file or folder on the volume, under `incoming/`."""

    path: str = Field(min_length=1, max_length=1024, examples=["incoming/llama"])


class ZipSource(Shape):
    """A zip archive on the volume, under `incoming/`."""

    zip: str = Field(min_length=1, max_length=1024, examples=["incoming/chinese-llama-lora.zip"])


class HubSource(Shape):
    """A repository of a model hub (only where `HUB_ENABLED` is set)."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", examples=["org/name"])
    revision: str | None = None


class ImportRequest(JobRequest):
    """Take files on the volume (a folder, a file or a zip archive) into the shelf as a model."""

    kind: Literal["import"]
    source: PathSource | ZipSource | HubSource
    target: ModelName
    sha256: dict[str, Sha256] = Field(default={}, description="Digests to check, by path inside the source.")


class OutputRequest(JobRequest):
    """How a model is to be written."""

    output_format: Literal["huggingface", "meta", "gguf"] = "huggingface"
    dtype: DType | None = Field(
        default=None, description="null keeps each tensor's own; q8_0 is an encoding of `gguf`."
    )
    max_shard_size: Size = Field(default="5GB", description="Of a `huggingface` output.")
    ranks: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Rank count of a `meta` output; null: as many as the input has.",
    )

    force: bool = Field(
        default=False, description="Make it anew even where the same request has made the same model before."
    )

    @model_validator(mode="after")
    def _options_fit_the_format(self) -> "OutputRequest":
        if self.ranks is not None and self.output_format != "meta":
            raise ValueError(
                f"ranks = {self.ranks} applies to output_format 'meta' only, the request has {self.output_format!r}"
            )
        if self.dtype == "q8_0" and self.output_format != "gguf":
            raise ValueError(
                f"dtype 'q8_0' is an encoding of output_format 'gguf', the request has {self.output_format!r}"
            )
        return self


class ConvertRequest(OutputRequest):
    """Turn a checkpoint of one layout into another, every tensor accounted for."""

    kind: Literal["convert"]
    source: ModelName
    target: ModelName
    instruct: bool = Field(default=False, description="Llama 3: an instruct model (eos ids, template).")

    @model_validator(mode="after")
    def _target_differs(self) -> "ConvertRequest":
        if self.source.lower() == self.target.lower():
            raise ValueError(
                f"target and source are both {self.source!r}: a model never overwrites its input"
            )
        return self


class AdapterChoice(Shape):
    """One adapter and how strongly it is applied."""

    name: ModelName
    scale: float = Field(default=1.0, ge=-100, le=100, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone_is_a_choice(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class MergeRequest(OutputRequest):
    """Merge adapters into a base model, in the order given."""

    kind: Literal["merge"]
    base: ModelName
    adapters: list[AdapterChoice] = Field(min_length=1, max_length=32)
    target: ModelName
    rounding: Literal["per_adapter", "once"] = Field(
        default="per_adapter", description="per_adapter equals merging one after another with PEFT."
    )
    verify: bool = True

    @model_validator(mode="after")
    def _target_is_new(self) -> "MergeRequest":
        inputs = [self.base, *(adapter.name for adapter in self.adapters)]
        if self.target.lower() in {name.lower() for name in inputs}:
            raise ValueError(f"target {self.target!r} is one of the inputs: a merge never overwrites them")
        return self


class ExtendTokenizerRequest(JobRequest):
    """Append to a SentencePiece vocabulary the pieces of another one that it lacks; nothing else changes."""

    kind: Literal["extend-tokenizer"]
    base: ModelName
    addition: ModelName
    target: ModelName
    pad_token: str | None = Field(
        default=None, min_length=1, max_length=64, description="Appended last.", examples=["[PAD]"]
    )

    @field_validator("pad_token")
    @classmethod
    def _is_one_piece(cls, token: str | None) -> str | None:
        if token is not None and (not token.isprintable() or " " in token):
            raise ValueError(f"a padding token has no spaces and no control characters, unlike {token!r}")
        return token

    @model_validator(mode="after")
    def _target_is_new(self) -> "ExtendTokenizerRequest":
        if self.target.lower() in (self.base.lower(), self.addition.lower()):
            raise ValueError(
                f"target {self.target!r} is one of the inputs: a model never overwrites its input"
            )
        return self


class ChatMessage(Shape):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=1_000_000)


class VerifyRequest(JobRequest):
    """Check a model: its tensors and files against its manifest; with `base`, also against base and adapters."""

    kind: Literal["verify"]
    model: ModelName
    base: ModelName | None = Field(
        default=None, description="What it was made of; null checks the manifest alone."
    )
    adapters: list[AdapterChoice] = Field(
        default=[], max_length=32, description="Merged into the base in this order."
    )

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> "VerifyRequest":
        if self.adapters and self.base is None:
            raise ValueError("adapters were given without the base that they were merged into")
        if self.base is not None and self.model.lower() == self.base.lower():
            raise ValueError(f"model and base are both {self.model!r}")
        return self


class LoadedModel(Shape):
    """A model as it is loaded: with adapters on the fly, quantized, its positions scaled."""

    model: ModelName
    adapters: list[AdapterChoice] = Field(default=[], max_length=8)
    quantization: Literal["8bit", "4bit"] | None = None
    rope_alpha: float | None = Field(default=None, gt=0, le=64)


class ModelRequest(JobRequest, LoadedModel):
    """What a request says of the loaded model that is to answer it."""


class Asked(Shape):
    """What is asked, and how it is to be answered."""

    prompt: str | None = Field(default=None, max_length=1_000_000)
    prompts: list[Annotated[str, Field(max_length=1_000_000)]] | None = Field(
        default=None, min_length=1, max_length=10_000
    )
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=1000)
    template: str | None = Field(
        default=None,
        max_length=64,
        description="A template's name, or \"model\" for the model's own. null continues a prompt as it stands; a "
        "conversation gets the model's own or, where it has none, the one that fits its lineage.",
    )
    system: str | None = Field(default=None, max_length=100_000)
    input: str | None = Field(default=None, max_length=1_000_000)
    sampling: Sampling = Sampling()
    fit_context: bool | Literal["answer"] = Field(
        default=False,
        description="true leaves out a conversation's oldest turns where it is too long for the model's context, and lowers "
        'max_new_tokens to what there is room for; "answer" does the latter alone; false refuses what does not fit.',
    )

    @model_validator(mode="after")
    def _one_kind_of_prompt(self) -> Self:
        names = [n for n in PROMPT_FIELDS if n in type(self).model_fields]
        given = [n for n in names if getattr(self, n) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"exactly one of {', '.join(names)} is needed, found {found}")
        return self


class GenerateRequest(ModelRequest, Asked):
    """Generate text from one prompt, many prompts or a conversation."""

    kind: Literal["generate"]
    model: ServedName = Field(
        description="A model of the shelf, or one of the server of `GENERATE_BACKEND_URL`."
    )
    prompts_file: str | None = Field(
        default=None, max_length=1024, description="A file of prompts on the volume, under `incoming/`."
    )
    return_token_ids: bool = False
    forward: bool = Field(
        default=True,
        description="false: a worker of this service answers, even where the server of `GENERATE_BACKEND_URL` has the model.",
    )


class Variant(LoadedModel):
    """One of the models that are compared."""

    label: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="How the result calls it; null is the model's name and those of its adapters, joined by +.",
    )

    @property
    def name(self) -> str:
        """The label, or what stands for it."""
        return self.label or "+".join([self.model, *(adapter.name for adapter in self.adapters)])


class CompareRequest(JobRequest, Asked):
    """Ask several models the same, with the same seed, and say where their answers part."""

    kind: Literal["compare"]
    variants: list[Variant] = Field(min_length=2, max_length=8)

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several variants are called {', '.join(twice)}: give them labels of their own")
        return self

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        if self.prompts is not None and len(self.prompts) > COMPARED_PROMPTS:
            raise ValueError(f"at most {COMPARED_PROMPTS} prompts are compared, found {len(self.prompts)}")
        return self

    def asking(self, variant: Variant, seed: int | None) -> GenerateRequest:
        """What one variant is asked."""
        asked = {name: getattr(self, name) for name in Asked.model_fields}
        loaded = {name: getattr(variant, name) for name in LoadedModel.model_fields}
        asked["sampling"] = self.sampling.model_copy(update={"seed": seed})
        return GenerateRequest(kind="generate", return_token_ids=True, **asked, **loaded)


class EmbedRequest(ModelRequest):
    """Turn texts into vectors: the mean of the last hidden states over a text's tokens, scaled to length 1."""

    kind: Literal["embed"]
    inputs: list[Annotated[str, Field(min_length=1, max_length=1_000_000)]] = Field(
        min_length=1, max_length=256
    )


class PerplexityRequest(ModelRequest):
    """Score a text: how well a model, or a base with adapters on the fly, expects each of its tokens."""

    kind: Literal["perplexity"]
    text: str | None = Field(default=None, min_length=1, max_length=1_000_000)
    text_file: str | None = Field(
        default=None, max_length=1024, description="A UTF-8 text on the volume, under `incoming/`."
    )
    context: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="Tokens of a window; null is the model's context, at most 2048.",
    )
    stride: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Tokens from window to window; null is half a window."
    )

    @model_validator(mode="after")
    def _one_text(self) -> "PerplexityRequest":
        if (self.text is None) == (self.text_file is None):
            found = "none of them" if self.text is None else "both"
            raise ValueError(f"exactly one of text, text_file is needed, found {found}")
        return self

    @model_validator(mode="after")
    def _windows_overlap(self) -> "PerplexityRequest":
        if self.context is not None and self.stride is not None and self.stride >= self.context:
            raise ValueError(
                f"stride = {self.stride} must be below context = {self.context}: each scored token needs one before it"
            )
        return self


AnyRequest = Annotated[
    ImportRequest
    | ConvertRequest
    | MergeRequest
    | GenerateRequest
    | EmbedRequest
    | CompareRequest
    | PerplexityRequest
    | ExtendTokenizerRequest
    | VerifyRequest,
    Field(discriminator="kind"),
]
"""A request of any kind, told apart by its `kind`."""

ANY_REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(AnyRequest)

MakingRequest = ImportRequest | ConvertRequest | MergeRequest | ExtendTokenizerRequest
"""The requests that make a model, their `target`."""

ResidentRequest = GenerateRequest | CompareRequest | EmbedRequest | PerplexityRequest

RESIDENT_REQUEST: TypeAdapter[ResidentRequest] = TypeAdapter(
    Annotated[ResidentRequest, Field(discriminator="kind")]
)
"""The requests that the resident generation worker answers."""

JobKind = Literal[
    "import", "convert", "merge", "generate", "compare", "embed", "perplexity", "extend-tokenizer", "verify"
]
"""One word for each kind of job; it walks the whole way."""

KINDS: tuple[str, ...] = get_args(JobKind)


def inputs_of(request: AnyRequest) -> list[str]:
    """The names of the models that a request reads, in the order in which it names them."""
    match request:
        case ImportRequest():
            names = []
        case ConvertRequest():
            names = [request.source]
        case MergeRequest():
            names = _with_adapters(request.base, request.adapters)
        case ExtendTokenizerRequest():
            names = [request.base, request.addition]
        case VerifyRequest():
            base = [] if request.base is None else [request.base]
            names = [*_with_adapters(request.model, request.adapters), *base]
        case CompareRequest():
            names = [name for one in request.variants for name in _with_adapters(one.model, one.adapters)]
        case _:
            names = _with_adapters(request.model, request.adapters)
    return list(dict.fromkeys(names))


def _with_adapters(model: str, adapters: Sequence[AdapterChoice]) -> list[str]:
    return [model, *(adapter.name for adapter in adapters)]


def target_of(request: AnyRequest) -> str | None:
    """The name of the model that a request makes, if it makes one."""
    return request.target if isinstance(request, MakingRequest) else None
