"""Parts that requests of several kinds share."""

from typing import Any, Literal, Required, TypedDict

JsonObject = dict[str, Any]


class Adapter(TypedDict):
    """An adapter and the factor on its change.

    Attributes:
        name: name of the adapter.
        scale: factor on its change; 1 is the change as it was trained.
    """

    name: str
    scale: float


class Message(TypedDict, total=False):
    """One turn of a conversation.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: the text; may be None next to `tool_calls`.
        tool_calls: calls of an assistant's turn, in OpenAI's form.
        tool_call_id: the call that a turn of a tool has the result of.
        name: the tool of a turn of a tool.
        reasoning_content: thinking of an assistant's turn.
    """

    role: Required[str]
    content: Required[str | None]
    tool_calls: list[JsonObject]
    tool_call_id: str
    name: str
    reasoning_content: str


class Sampling(TypedDict, total=False):
    """Choice of the next token.

    Attributes:
        temperature: divides the scores: values below 1 favour likely tokens, 0 is greedy. Default: 0.2.
        top_k: only the k most likely tokens can be drawn; 0 keeps all. Default: 40.
        top_p: only the most likely tokens that together reach this probability can be drawn. Default: 0.9.
        min_p: drops tokens less likely than this share of the most likely one.
        typical_p: locally typical sampling: the probability mass to keep.
        repetition_penalty: divides the positive scores of tokens in prompt or output. Default: 1.1.
        presence_penalty: subtracted once from the score of every token that the output already has.
        frequency_penalty: subtracted from a token's score once per occurrence in the output.
        no_repeat_ngram_size: no sequence of this many tokens occurs twice; 0 is off.
        logit_bias: token id to a value added to its score, from -100 (never) to 100 (always).
        max_new_tokens: largest number of tokens of an output. Default: 400.
        min_new_tokens: the end-of-text token is not drawn before this many tokens.
        num_beams: beams of a beam search; 1 disables it.
        do_sample: draw at random; False always takes the most likely token.
        stop: texts that end the output.
        stop_token_ids: tokens that end the output in addition to the model's own.
        seed: the same request with the same seed gives the same tokens.
        n: number of outputs per prompt.
        logprobs: return the log-probability of each token and of this many most likely tokens.
    """

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
    stop_token_ids: list[int]
    seed: int
    n: int
    logprobs: int


class WebhookTarget(TypedDict, total=False):
    """Address that receives a message of the end of a job.

    Attributes:
        url: the address.
        events: ends of the job that it receives; by default all.
    """

    url: Required[str]
    events: list[Literal["succeeded", "failed", "canceled"]]


class JobOptions(TypedDict, total=False):
    """Fields of every request.

    Attributes:
        after: ids of jobs that must have succeeded first.
        metadata: up to 16 pairs of texts, given back with the job.
        webhook: address that receives a signed message of the job's end.
    """

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
    """Layout of a written model.

    Attributes:
        output_format: layout. Default: `huggingface`.
        dtype: dtype of the tensors; None keeps each tensor's own.
        max_shard_size: largest file of a `huggingface` output, such as "5GB".
        ranks: number of rank files of a `meta` output; None is as many as the input has.
        imatrix: importance matrix of a `gguf` output: `{"text_file": "incoming/…"}` or `{"file": "incoming/…"}`.
        force: compute it even if an identical request has made it before.
    """

    output_format: Literal["huggingface", "meta", "gguf"]
    dtype: DType | None
    max_shard_size: str
    ranks: int | None
    imatrix: dict[str, str] | None
    force: bool


class ModelChoice(TypedDict, total=False):
    """A model and the way it is loaded.

    Attributes:
        model: name of the model.
        adapters: adapters on the fly, in order.
        quantization: quantize the model while it is loaded.
        rope_alpha: NTK scaling for contexts longer than the model's.
    """

    model: Required[str]
    adapters: list[str | Adapter]
    quantization: Literal["8bit", "4bit"] | None
    rope_alpha: float | None


class JsonSchema(TypedDict, total=False):
    """A JSON schema under OpenAI's names.

    Attributes:
        name: name of the schema.
        description: its meaning; not used.
        schema: the schema.
        strict: the schema is always enforced.
    """

    name: str
    description: str | None
    schema: Required[dict[str, Any]]
    strict: bool | None


class ResponseFormat(TypedDict, total=False):
    """Form of outputs.

    Attributes:
        type: free text, any JSON object, or JSON that the schema admits.
        json_schema: the schema of the type `json_schema`.
    """

    type: Required[Literal["text", "json_object", "json_schema"]]
    json_schema: JsonSchema


class PromptOptions(TypedDict, total=False):
    """Prompts and sampling; exactly one kind of prompt is given.

    Attributes:
        prompt: one prompt.
        prompts: several prompts, each with its own outputs.
        messages: a conversation.
        template: name of a prompt template, "model" for the model's own.
        system: system text.
        input: input of an instruction template.
        sampling: choice of the next token.
        fit_context: fit what is too long into the model's context: True drops the oldest turns and lowers `max_new_tokens`, `answer` only the latter.
        response_format: form of the outputs, JSON by a schema for example.
        guided_regex: regular expression that each output matches as a whole.
    """

    prompt: str
    prompts: list[str]
    messages: list[Message]
    template: str | None
    system: str
    input: str
    sampling: Sampling
    fit_context: bool | Literal["answer"]
    response_format: ResponseFormat
    guided_regex: str


class ToolPromptOptions(PromptOptions, total=False):
    """Prompts, sampling, tools, and variables for the model's own chat template.

    Attributes:
        tools: functions that the model may call, in OpenAI's form; tools of other types are left out.
        tool_choice: `auto`, `none`, `required`, or `{"type": "function", "function": {"name": …}}`.
        parallel_tool_calls: False: an output ends after its first call.
        chat_template_kwargs: variables for the model's own chat template, such as `enable_thinking`.
    """

    tools: list[JsonObject]
    tool_choice: str | JsonObject
    parallel_tool_calls: bool
    chat_template_kwargs: JsonObject


class PathSource(TypedDict):
    """A file or folder on the volume.

    Attributes:
        path: `incoming/…`.
    """

    path: str


class ZipSource(TypedDict):
    """A zip archive on the volume.

    Attributes:
        zip: `incoming/….zip`.
    """

    zip: str


class UploadSource(TypedDict):
    """Finished uploads, together one folder.

    Attributes:
        upload: their ids, as `client.upload` returns them.
    """

    upload: list[str]


class HubSource(TypedDict, total=False):
    """A repository of the Hub; `files` are shell patterns.

    Attributes:
        hub: the id, `org/name`.
        revision: a branch, a tag or a commit; None is the main branch.
        files: patterns of the files to fetch; None is what the repository's one model needs.
    """

    hub: Required[str]
    revision: str | None
    files: list[str] | None


class Variant(ModelChoice, total=False):
    """One of the models that are compared.

    Attributes:
        label: name in the result; by default the model and its adapters, joined by +.
    """

    label: str | None
