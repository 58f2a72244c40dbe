"""From a generate request to the HTTP calls to the other server: one call per output."""

from dataclasses import dataclass
from typing import Any

from services.backend.dialects import continuing_fields, extra_fields, form_fields
from services.backend.server import ServedModel
from services.errors import UnsupportedOption
from services.kinds.generate import GenerateRequest
from services.kinds.shared import NO_TOKEN_LIMIT
from services.kinds.tools import NamedTool
from services.models.prompt_file import PromptEntry
from services.sampling import Sampling
from services.templates import (
    OWN_TEMPLATE,
    Message,
    RenderedPrompt,
    Text,
    calls_as_text,
    find_template,
    resolve,
    tools_as_users,
)

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Call:
    """Path and JSON body of one request, and the name of the prompt's template ("model" is the server's own)."""

    path: str
    body: dict[str, Any]
    template: str


def check_forwardable(request: GenerateRequest, model: ServedModel) -> None:
    """Refuses a request that the other server cannot fulfil.

    Raises:
        UnsupportedOption: the message names the option.
        UnknownTemplate, InvalidRequest, InvalidText: see `call_of`.
    """
    if request.messages is not None:
        entry = PromptEntry(messages=tuple(request.messages))
    else:
        entry = PromptEntry(prompt=(request.prompts or [request.prompt or ""])[0])
    call_of(request, entry, model, index=0, seed=0)


def call_of(
    request: GenerateRequest, entry: PromptEntry, model: ServedModel, *, index: int, seed: int
) -> Call:
    """Returns the call for output number `index` of a prompt; `seed` is the seed of its first output.

    The server renders messages, and prompts with the template "model", by its own template (`/v1/chat/completions`). All
    other prompts are sent as text (`/v1/completions`), including those in our templates that consist of text alone.

    Raises:
        UnsupportedOption: the server cannot do it; the message names the option.
        UnknownTemplate: no template has this name.
        InvalidRequest: the parts of the prompt contradict each other.
        InvalidText: a text has a lone surrogate.
    """
    if request.return_token_ids:
        raise _refusal("return_token_ids", "does not return token ids")
    resolved = resolve(entry.parts(request), chat_template=OWN_TEMPLATE)
    body: dict[str, Any]
    if isinstance(resolved, RenderedPrompt):
        if request.is_call_required:
            raise _refusal("A required call", "calls tools in conversations alone")
        body = {"prompt": _text(resolved), "logprobs": request.sampling.logprobs}
        path, template = "/v1/completions", resolved.template
    else:
        body = {
            "messages": _messages(resolved.messages),
            **_chat_logprobs(request.sampling),
            **_tool_fields(request, model),
        }
        if resolved.messages[-1].role == "assistant":
            body |= continuing_fields(model.dialect)
        path, template = "/v1/chat/completions", OWN_TEMPLATE
    body |= _options(request, model, template) | {"seed": seed_of(seed, index)}
    return Call(path, {name: value for name, value in body.items() if value is not None}, template)


def seed_of(seed: int, index: int) -> int:
    """Returns the seed of output number `index` of a prompt."""
    return seed if index == 0 else (seed + index) & LARGEST_SEED


def _messages(messages: list[Message]) -> list[dict[str, Any]]:
    # OpenAI's API takes a tool's result only after the call that it belongs to.
    called = {call.id for turn in messages for call in turn.tool_calls or []}
    if any(turn.role == "tool" and turn.tool_call_id not in called for turn in messages):
        messages = tools_as_users(calls_as_text(messages))
    return [turn.model_dump(exclude_none=True) for turn in messages]


def _tool_fields(request: GenerateRequest, model: ServedModel) -> dict[str, Any]:
    if request.chat_template_kwargs and model.dialect not in ("graftwerk", "llamacpp", "vllm"):
        raise _refusal("chat_template_kwargs", "is not known to have variables for templates")
    choice = request.tool_choice
    return {
        "tools": [tool.json_value for tool in request.functions] or None,
        "tool_choice": choice.model_dump() if isinstance(choice, NamedTool) else choice,
        "parallel_tool_calls": request.parallel_tool_calls,
        "chat_template_kwargs": request.chat_template_kwargs,
    }


def _text(prompt: RenderedPrompt) -> str:
    texts = [segment.text for segment in prompt.segments if isinstance(segment, Text)]
    if find_template(prompt.template).stop_pieces or len(texts) < len(prompt.segments):
        raise _refusal(
            f"The template {prompt.template!r}",
            "takes text, and this template needs special tokens here",
            'Leave the template out, or name "model": the server then uses the template of its model.',
        )
    return "".join(texts)


def _options(request: GenerateRequest, model: ServedModel, template: str) -> dict[str, Any]:
    sampling = request.sampling
    is_chat = template == OWN_TEMPLATE
    own_stop = (
        () if is_chat or request.is_guided else find_template(template).stop
    )  # a form determines the end
    stop = [*sampling.stop, *own_stop]
    return {
        "model": request.model,
        **_limit(request, is_chat=is_chat),
        "temperature": 0 if sampling.greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        "stop": stop or None,
        **extra_fields(sampling, model.dialect),
        **form_fields(request, model.dialect),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _limit(request: GenerateRequest, *, is_chat: bool) -> dict[str, int]:
    limit = request.sampling.max_new_tokens
    if limit == 0:
        raise _refusal("max_new_tokens = 0", "always generates")
    if not request.fit_context or limit < NO_TOKEN_LIMIT:
        return {"max_tokens": limit}
    if not is_chat:
        raise _refusal(
            "An output without a limit", "would apply a limit of its own to a text", "Set max_new_tokens."
        )
    return {}  # the output of a chat may fill the context by default


def _chat_logprobs(sampling: Sampling) -> dict[str, Any]:
    if sampling.logprobs is None:
        return {}
    return {"logprobs": True} | ({"top_logprobs": sampling.logprobs} if sampling.logprobs else {})


def _refusal(option: str, reason: str, hint: str = "") -> UnsupportedOption:
    return UnsupportedOption(
        f"{option} is not available here: the server that generates with this model {reason}.",
        hint or "Leave it out, or use one of this service's own models.",
    )
