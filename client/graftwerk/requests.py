"""Fields of the requests, one dictionary type per kind, for editors and type checkers; the service validates them."""

from typing import Literal, Required

from graftwerk.request_parts import (
    Adapter,
    HubSource,
    JobOptions,
    JsonObject,
    Message,
    ModelChoice,
    OutputOptions,
    PathSource,
    ToolPromptOptions,
    UploadSource,
    Variant,
    ZipSource,
)


class ImportRequest(JobOptions, total=False):
    """Fields of an `import` request.

    Attributes:
        source: files on the volume, finished uploads, or a repository of the Hub.
        target: name of the new model.
        sha256: digests to check, by path inside the source.
    """

    source: Required[PathSource | ZipSource | UploadSource | HubSource]
    target: Required[str]
    sha256: dict[str, str]


class ConvertRequest(JobOptions, OutputOptions, total=False):
    """Fields of a `convert` request.

    Attributes:
        source: name of the model to convert.
        target: name of the new model.
        instruct: Llama 3: it is an instruct model.
        base: base of an adapter that is written as `gguf`.
        measure: `{"text_file": "incoming/…"}`: text on which a `gguf` output is compared with its source.
    """

    source: Required[str]
    target: Required[str]
    instruct: bool
    base: str | None
    measure: dict[str, str] | None


class MergeRequest(JobOptions, OutputOptions, total=False):
    """Fields of a `merge` request.

    Attributes:
        base: name of the base model, in either layout.
        adapters: adapters in the order in which they were trained: names, or names with scales.
        target: name of the new model.
        rounding: `per_adapter` (default) equals merging one after another with PEFT, `once` rounds at the end only.
        verify: compute parts of the result again before it is published. Default: True.
        base_precision: `dequantized`: round the base to 4 bits and back first, as QLoRA has seen it.
        compare_precisions: measure the difference between both precisions.
    """

    base: Required[str]
    adapters: Required[list[str | Adapter]]
    target: Required[str]
    rounding: Literal["per_adapter", "once"]
    verify: bool
    base_precision: Literal["original", "dequantized"]
    compare_precisions: bool


class PublishToHubRequest(JobOptions, total=False):
    """Fields of a `publish-to-hub` request.

    Attributes:
        model: name of the model.
        repository: the id, `org/name`.
        private: make the repository private. Default: True.
    """

    model: Required[str]
    repository: Required[str]
    private: bool


class VerifyRequest(JobOptions, total=False):
    """Fields of a `verify` request.

    Attributes:
        model: name of the model.
        base: base that it was made of; None checks it against its manifest alone.
        adapters: adapters that were merged, in order.
    """

    model: Required[str]
    base: str | None
    adapters: list[str | Adapter]


class ExtendTokenizerRequest(JobOptions, total=False):
    """Fields of an `extend-tokenizer` request.

    Attributes:
        base: name of a model with a SentencePiece tokenizer.
        addition: name of the tokenizer with the pieces to append.
        target: name of the new tokenizer.
        pad_token: padding token to append, such as `[PAD]`.
    """

    base: Required[str]
    addition: Required[str]
    target: Required[str]
    pad_token: str | None


class ExtractRequest(JobOptions, total=False):
    """Fields of an `extract` request.

    Attributes:
        base: name of the base model.
        model: name of the model that was fine-tuned from it.
        rank: rank of the adapter.
        target: name of the new adapter.
    """

    base: Required[str]
    model: Required[str]
    rank: Required[int]
    target: Required[str]


class CombineRequest(JobOptions, total=False):
    """Fields of a `combine` request.

    Attributes:
        adapters: adapters of one base, with scales.
        target: name of the new adapter.
        method: `concatenate` and `linear` add the changes; `ties` and `dare` leave parts of them out.
        density: share of elements that `ties` and `dare` keep. Default: 0.5.
        seed: seed of the elements that `dare` keeps.
        rank: rank of the result; None is the sum of the ranks, with which a sum is exact.
    """

    adapters: Required[list[str | Adapter]]
    target: Required[str]
    method: Literal["concatenate", "linear", "ties", "dare"]
    density: float
    seed: int
    rank: int | None


class GenerateRequest(JobOptions, ModelChoice, ToolPromptOptions, total=False):
    """Fields of a `generate` request.

    Attributes:
        prompts_file: file of prompts on the volume, `incoming/…`, in place of the prompts.
        prompt_token_ids: token ids of one or several prompts, in place of texts.
        score_prompt: return the log-probability of each token of the prompts too.
        exact: merge adapters into a copy of the model, whose values are those of a merge job.
        return_token_ids: return the ids of the tokens too.
        forward: False: a worker of the service generates, even if a backend server has the model.
    """

    prompts_file: str
    prompt_token_ids: list[int] | list[list[int]]
    score_prompt: bool
    exact: bool
    return_token_ids: bool
    forward: bool


class CompareRequest(JobOptions, ToolPromptOptions, total=False):
    """Fields of a `compare` request.

    Attributes:
        variants: 2 to 8 models.
    """

    variants: Required[list[Variant]]


class EmbedRequest(JobOptions, ModelChoice, total=False):
    """Fields of an `embed` request.

    Attributes:
        inputs: the texts, or their token ids.
        dimensions: length of the vectors; None is the width of the model.
    """

    inputs: Required[list[str] | list[list[int]]]
    dimensions: int | None


class PerplexityRequest(JobOptions, ModelChoice, total=False):
    """Fields of a `perplexity` request.

    Attributes:
        text: text to score.
        text_file: text on the volume, `incoming/…`, in place of `text`.
        context: tokens per window; None is the model's context, at most 2048.
        stride: tokens from window to window; None is half a window.
    """

    text: str
    text_file: str
    context: int | None
    stride: int | None


class TokenizeRequest(JobOptions, total=False):
    """Fields of a `tokenize` request; exactly one of `texts`, `token_ids` and `messages` is given.

    Attributes:
        model: name of a model or of a tokenizer.
        adapters: adapters on the fly: the tokenizer is that of the merged model.
        texts: texts that become token ids.
        token_ids: lists of token ids that become texts.
        messages: a conversation, whose token ids are the prompt of a `generate` job.
        template: template of the conversation; by default the model's own.
        tools: functions that the conversation's template describes.
        tool_choice: as in a `generate` request.
        chat_template_kwargs: variables for the model's own chat template.
        add_generation_prompt: False: the conversation ends with its last message. Default: True.
        add_special_tokens: begin each text as the model's prompts begin. Default: True.
        parse_special: text that looks like a special token becomes that token.
        return_pieces: return each token as the vocabulary writes it too.
    """

    model: Required[str]
    adapters: list[str | Adapter]
    texts: list[str]
    token_ids: list[list[int]]
    messages: list[Message]
    template: str
    tools: list[JsonObject]
    tool_choice: str | JsonObject
    chat_template_kwargs: JsonObject
    add_generation_prompt: bool
    add_special_tokens: bool
    parse_special: bool
    return_pieces: bool
