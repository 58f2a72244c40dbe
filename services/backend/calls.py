"""From a generate request to what the other server is asked: one call for each answer."""

from dataclasses import dataclass
from typing import Any

from services.backend.dialects import extra_fields
from services.backend.server import ServedModel
from services.errors import InvalidRequest, UnsupportedOption
from services.kinds.generate import GenerateRequest
from services.kinds.shared import NO_TOKEN_LIMIT
from services.models.prompt_file import Question
from services.sampling import Sampling
from services.templates import OWN_TEMPLATE, Message, Text, check_text, find_template, render

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Call:
    """What is posted where, and the template that it was written down with (the server's own is "model")."""

    path: str
    body: dict[str, Any]
    template: str

    @property
    def is_chat(self) -> bool:
        """Whether the server writes the conversation down itself."""
        return self.template == OWN_TEMPLATE


def may_forward(request: GenerateRequest) -> bool:
    """Whether the other server answers a request if it serves its model.

    What says how a model is loaded (adapters, quantization, rope_alpha) speaks of models of the shelf.
    """
    of_the_shelf = (
        bool(request.adapters) or request.quantization is not None or request.rope_alpha is not None
    )
    return request.forward and not of_the_shelf


def check_forwardable(request: GenerateRequest, model: ServedModel) -> None:
    """Refuse what the other server cannot do, by name. Raises UnsupportedOption, and as `call_of`."""
    if request.messages is not None:
        question = Question(messages=tuple(request.messages))
    else:
        question = Question(prompt=(request.prompts or [request.prompt or ""])[0])
    call_of(request, question, model, index=0, seed=0)


def call_of(
    request: GenerateRequest, question: Question, model: ServedModel, *, index: int, seed: int
) -> Call:
    """The call for one answer: the `index`-th to this question, `seed` being that of the first.

    Messages, and prompts with the template "model", are written down by the server (`/v1/chat/completions`). Other prompts
    are text (`/v1/completions`), also those of our templates that are text alone.

    Raises:
        UnsupportedOption: the server cannot do it.
        UnknownTemplate, InvalidRequest, InvalidText.
    """
    if request.return_token_ids:
        raise _refusal("return_token_ids", "has no token ids to give")
    turns = _turns(request, question)
    if turns is not None:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        body = {"messages": messages, **_chat_logprobs(request.sampling)}
        return _call(request, "/v1/chat/completions", body, model, OWN_TEMPLATE, index, seed)
    text, template = _written(request, question)
    body = {"prompt": text, "logprobs": request.sampling.logprobs}
    return _call(request, "/v1/completions", body, model, template, index, seed)


def seed_of(seed: int, index: int) -> int:
    """The seed of a prompt's `index`-th answer."""
    return seed if index == 0 else (seed + index) & LARGEST_SEED


def _turns(request: GenerateRequest, question: Question) -> list[Message] | None:
    """The conversation that the server is to write down; None where we do."""
    system, input = _around(request, question)
    if request.template not in (None, OWN_TEMPLATE):
        return None
    if question.messages is None:
        if request.template is None:
            return None
        text = f"{question.text}\n{input}" if input else question.text
        turns = [Message(role="user", content=text)]
    elif input is not None:
        raise InvalidRequest(
            "Messages came together with an instruction or an input.", "Give one or the other."
        )
    else:
        turns = list(question.messages)
    for turn in turns:
        check_text(turn.content)
    if system and not any(turn.role == "system" for turn in turns):
        turns = [Message(role="system", content=system), *turns]
    return turns


def _around(request: GenerateRequest, question: Question) -> tuple[str | None, str | None]:
    """System text and input: those of the question before those of the request."""
    system = request.system if question.system is None else question.system
    return system, request.input if question.input is None else question.input


def _written(request: GenerateRequest, question: Question) -> tuple[str, str]:
    """The text that the server continues, and the template it is written in."""
    template = request.template or "raw"
    system, input = _around(request, question)
    if template == "raw" and (system or input):
        raise InvalidRequest(
            "A text that is continued as it stands has no place for a system text or an input.",
            "Name a template, alpaca for example.",
        )
    segments = render(template, question.messages, instruction=question.prompt, system=system, input=input)
    if find_template(template).stop_pieces or not all(isinstance(segment, Text) for segment in segments):
        raise _refusal(
            f"template {template!r}",
            "takes text, and this template has special tokens here",
            'Leave the template out, or name "model": the server then uses that of its model.',
        )
    return "".join(segment.text for segment in segments if isinstance(segment, Text)), template


def _call(
    request: GenerateRequest, path: str, body: dict[str, Any], model: ServedModel, template: str, index: int, seed: int
) -> Call:  # fmt: skip
    sampling = request.sampling
    stop = list(sampling.stop)
    if template != OWN_TEMPLATE:
        stop += find_template(template).stop
    fields = {
        "model": request.model,
        **body,
        **_limit(request, is_chat=template == OWN_TEMPLATE),
        "temperature": 0 if sampling.greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        "stop": stop or None,
        "seed": seed_of(seed, index),
        **extra_fields(sampling, model.dialect),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Call(path, {name: value for name, value in fields.items() if value is not None}, template)


def _limit(request: GenerateRequest, *, is_chat: bool) -> dict[str, int]:
    limit = request.sampling.max_new_tokens
    if limit == 0:
        raise _refusal("max_new_tokens = 0", "always writes")
    if not request.fit_context or limit < NO_TOKEN_LIMIT:
        return {"max_tokens": limit}
    if not is_chat:
        raise _refusal(
            "an answer without a limit", "would end a text after a number of its own", "Set max_new_tokens."
        )
    return {}  # a chat's answer may fill the context by itself


def _chat_logprobs(sampling: Sampling) -> dict[str, Any]:
    if sampling.logprobs is None:
        return {}
    return {"logprobs": True} | ({"top_logprobs": sampling.logprobs} if sampling.logprobs else {})


def _refusal(option: str, why: str, hint: str = "") -> UnsupportedOption:
    return UnsupportedOption(
        f"{option} is not available here: the server that generates with this model {why}",
        hint or "Leave it out, or ask one of this service's own models.",
    )
