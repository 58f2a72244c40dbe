"""Fields of the requests, one dictionary type per kind, for editors and type checkers; the service validates them."""

from typing import Any, Literal, Required, TypedDict

JsonObject = dict[str, Any]


class Adapter(TypedDict):
    """An adapter and the factor on its change."""

    name: str
    scale: float


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class Sampling(TypedDict, total=False):
    """Choice of the next token."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    logit_bias: dict[str, float]
    max_new_tokens: int
    min_new_tokens: int
    num_beams: int
    do_sample: bool
    stop: list[str]
    seed: int
    n: int
    logprobs: int


class WebhookTarget(TypedDict, total=False):
    """Address that receives a message of the end of a job."""

    url: Required[str]
    events: list[Literal["succeeded", "failed", "canceled"]]


class JobOptions(TypedDict, total=False):
    """Fields of every request."""

    after: list[str]
    metadata: dict[str, str]
    webhook: WebhookTarget


DType = Literal[
    "float32", "float16", "bfloat16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q2_k_s", "q3_k", "q3_k_s", "q3_k_m",
    "q3_k_l", "q4_k", "q4_k_s", "q4_k_m", "q5_k", "q5_k_s", "q5_k_m", "q6_k", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s",
    "iq2_m", "iq3_xxs", "iq3_xs", "iq3_s", "iq3_m", "iq4_nl", "iq4_xs",
]  # fmt: skip
"""Dtypes of a written model; those with a q are encodings of GGUF, by llama-quantize's names."""


class OutputOptions(TypedDict, total=False):
    """Layout of a written model."""

    output_format: Literal["huggingface", "meta", "gguf"]
    dtype: DType | None
    max_shard_size: str
    ranks: int | None
    imatrix: dict[str, str] | None
    force: bool


class ModelChoice(TypedDict, total=False):
    """A model and the way it is loaded."""

    model: Required[str]
    adapters: list[str | Adapter]
    quantization: Literal["8bit", "4bit"] | None
    rope_alpha: float | None


class PromptOptions(TypedDict, total=False):
    """Prompts and sampling; exactly one kind of prompt is given."""

    prompt: str
    prompts: list[str]
    messages: list[Message]
    template: str | None
    system: str
    input: str
    sampling: Sampling
    fit_context: bool | Literal["answer"]


class HubSource(TypedDict, total=False):
    """A repository of the Hub; `files` are shell patterns."""

    hub: Required[str]
    revision: str | None
    files: list[str] | None


class ImportRequest(JobOptions, total=False):
    """Fields of an `import` request."""

    source: Required[dict[str, str | list[str]] | HubSource]
    target: Required[str]
    sha256: dict[str, str]


class ConvertRequest(JobOptions, OutputOptions, total=False):
    """Fields of a `convert` request."""

    source: Required[str]
    target: Required[str]
    instruct: bool
    base: str | None
    measure: dict[str, str] | None


class MergeRequest(JobOptions, OutputOptions, total=False):
    """Fields of a `merge` request."""

    base: Required[str]
    adapters: Required[list[str | Adapter]]
    target: Required[str]
    rounding: Literal["per_adapter", "once"]
    verify: bool
    base_precision: Literal["original", "dequantized"]
    compare_precisions: bool


class PublishToHubRequest(JobOptions, total=False):
    """Fields of a `publish-to-hub` request."""

    model: Required[str]
    repository: Required[str]
    private: bool


class VerifyRequest(JobOptions, total=False):
    """Fields of a `verify` request."""

    model: Required[str]
    base: str | None
    adapters: list[str | Adapter]


class ExtendTokenizerRequest(JobOptions, total=False):
    """Fields of an `extend-tokenizer` request."""

    base: Required[str]
    addition: Required[str]
    target: Required[str]
    pad_token: str | None


class ExtractRequest(JobOptions, total=False):
    """Fields of an `extract` request."""

    base: Required[str]
    model: Required[str]
    rank: Required[int]
    target: Required[str]


class CombineRequest(JobOptions, total=False):
    """Fields of a `combine` request."""

    adapters: Required[list[str | Adapter]]
    target: Required[str]
    method: Literal["concatenate", "linear", "ties", "dare"]
    density: float
    seed: int
    rank: int | None


class GenerateRequest(JobOptions, ModelChoice, PromptOptions, total=False):
    """Fields of a `generate` request."""

    prompts_file: str
    return_token_ids: bool
    forward: bool


class Variant(ModelChoice, total=False):
    """One of the models that are compared."""

    label: str | None


class CompareRequest(JobOptions, PromptOptions, total=False):
    """Fields of a `compare` request."""

    variants: Required[list[Variant]]


class EmbedRequest(JobOptions, ModelChoice, total=False):
    """Fields of an `embed` request."""

    inputs: Required[list[str]]


class PerplexityRequest(JobOptions, ModelChoice, total=False):
    """Fields of a `perplexity` request."""

    text: str
    text_file: str
    context: int | None
    stride: int | None
