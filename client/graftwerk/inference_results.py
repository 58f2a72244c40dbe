"""Results of jobs that run a loaded model, and the text that they stream."""

from graftwerk.result import Failure, JobResult, Result, Usage


class Logprob(Result):
    """Natural log-probability of a token (null for minus infinity) and those of the most likely tokens there."""

    token: str
    token_id: int | None = None
    logprob: float | None
    special: bool = False
    top: list["Logprob"] = []


class ToolCall(Result):
    """A call that the model wrote: the function's name, and its arguments as JSON text."""

    id: str
    name: str
    arguments: str


class ToolCallPiece(Result):
    """Part of a stream: call number `index` of an output, with new text of its arguments.

    `offset` counts the characters of its arguments before this piece; each piece has the id and the name.
    """

    index: int
    id: str
    name: str
    arguments: str
    offset: int = 0


class Output(Result):
    """One output of a prompt: its text, or the error in its place.

    `reasoning` is the thinking before the text, and `tool_calls` are calls of the tools that were offered.
    `warnings` are sentences on texts that open a call and are not one.
    """

    prompt: str
    index: int = 0
    text: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    warnings: list[str] | None = None
    finish_reason: str | None = None
    stop_string: str | None = None
    usage: Usage | None = None
    seed: int | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    dropped_turns: int | None = None
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob] | None = None
    error: Failure | None = None


class GenerateResult(JobResult):
    """Outputs in the prompts' order. Jobs with a file of prompts have their outputs in files on the volume."""

    outputs: list[Output]
    template: str | None = None
    seconds: float
    tokens_per_second: float
    device: str | None
    dtype: str | None
    backend: str | None = None
    engine: str | None = None
    adapters: str | None = None
    ignored: list[str] | None = None
    prompts: int | None = None
    answered: int | None = None
    failed: int | None = None
    resumed: int | None = None
    usage: Usage | None = None
    results_file: str | None = None
    predictions_file: str | None = None


class TokenPiece(Result):
    """New text of one output, streamed while a job runs.

    `offset` counts the characters of the output before this piece, `reasoning_offset` those of its reasoning; a job that is run
    again starts at 0 again.
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


class VariantAdapter(Result):
    """Adapter of a variant and the factor on its change."""

    name: str
    scale: float


class VariantSummary(Result):
    """One variant of a comparison, and engine, device and speed of its generation if it has any output.

    `ignored` are fields of the request that were left out for it, `tools` for example.
    """

    label: str
    model: str
    adapters: list[VariantAdapter] = []
    quantization: str | None = None
    rope_alpha: float | None = None
    template: str | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    device: str | None = None
    dtype: str | None = None
    backend: str | None = None
    engine: str | None = None
    ignored: list[str] | None = None


class FirstDifference(Result):
    """First token and character, counted from 0, at which the outputs of two variants differ; null if they do not."""

    variants: list[str]
    token: int | None
    character: int | None


class Comparison(Result):
    """Outputs of all variants for one prompt, and the first difference of each pair."""

    prompt: str
    outputs: list[Output]
    differences: list[FirstDifference]


class PairCount(Result):
    """Number of outputs of two variants that are equal to the last token, of those compared."""

    variants: list[str]
    equal: int
    compared: int


class CompareResult(JobResult):
    """Variants in the request's order, one comparison for each prompt and output, one count for each pair."""

    seed: int
    variants: list[VariantSummary]
    comparisons: list[Comparison]
    pairs: list[PairCount]


class EmbedResult(JobResult):
    """One vector of length 1 for each text, in order."""

    embeddings: list[list[float]]
    usage: Usage
    seconds: float
    device: str
    dtype: str
    engine: str | None = None


class TokenizerFacts(Result):
    """Tokens with a role, as they are written, and the model's own chat template; null where it has none."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    vocabulary_size: int
    chat_template: str | None


class TokenizeResult(JobResult):
    """Token ids of the texts or texts of the token ids, in order, and the tokenizer."""

    token_ids: list[list[int]] | None = None
    texts: list[str] | None = None
    pieces: list[list[str]] | None = None
    tokenizer: TokenizerFacts
    template: str | None = None
    ignored: list[str] | None = None


class PerplexityResult(JobResult):
    """Score of a text; likelihoods in nats per token."""

    perplexity: float | None
    negative_log_likelihood: float | None
    bits_per_byte: float | None
    tokens: int
    windows: int
    context: int
    stride: int
    seconds: float
    device: str
    dtype: str
