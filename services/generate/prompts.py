"""From a prompt or a conversation to the token ids that the model reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.chat_output import END_THINK, THINK, OutputForm
from services.errors import InvalidRequest
from services.generate.chat_template import NO_OPTIONS, ChatTemplate, TemplateOptions
from services.isolation.process import Steps, complete
from services.templates import (
    OWN_TEMPLATE,
    Message,
    PromptParts,
    RenderedPrompt,
    Segment,
    Text,
    find_template,
    resolve,
)
from services.tokenizers import Tokenizer

PLAIN = OutputForm()


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """Token ids of a prompt, the name of its template, the texts and tokens that end an output in it, and an output's parts."""

    token_ids: list[int]
    template: str
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    form: OutputForm = PLAIN


def build_prompt(
    tokenizer: Tokenizer,
    parts: PromptParts,
    *,
    chat_template: ChatTemplate | None = None,
    options: TemplateOptions = NO_OPTIONS,
) -> BuiltPrompt:
    """Returns the prompt of `prompt_steps` and raises its errors."""
    return complete(prompt_steps(tokenizer, parts, chat_template=chat_template, options=options))


def prompt_steps(
    tokenizer: Tokenizer,
    parts: PromptParts,
    *,
    chat_template: ChatTemplate | None = None,
    options: TemplateOptions = NO_OPTIONS,
) -> Steps[BuiltPrompt]:
    """Returns the token ids of a prompt or a conversation; yields while the model's own template is rendered.

    Args:
        parts: a conversation without a template gets the model's own one, or else the one that fits the tokenizer
            (see `fitting_template`).
        chat_template: the model's own template (`LoadedModel.chat_template`).
        options: tools and variables for the model's own template; the other templates have no place for them.

    Raises:
        UnknownTemplate: no template has this name.
        InvalidRequest: the parts contradict each other, or the template cannot express them.
        InvalidText: a text has a lone surrogate.
        TemplateLimitExceeded: rendering the model's own template reached a limit.
    """
    resolved = resolve(parts, chat_template=fitting_template(tokenizer, chat_template))
    if isinstance(resolved, RenderedPrompt):
        return _in_our_template(tokenizer, resolved)
    return (yield from _in_own_template(tokenizer, chat_template, resolved.messages, options))


def template_name(tokenizer: Tokenizer, parts: PromptParts, *, chat_template: ChatTemplate | None) -> str:
    """Returns the name of the template of `prompt_steps`, without rendering the model's own."""
    resolved = resolve(parts, chat_template=fitting_template(tokenizer, chat_template))
    return resolved.template if isinstance(resolved, RenderedPrompt) else OWN_TEMPLATE


def fitting_template(tokenizer: Tokenizer, chat_template: ChatTemplate | None) -> str:
    """Returns the template of a conversation for which none is named.

    The model's own comes first; then llama-3 or chatml if the vocabulary has their special tokens; otherwise alpaca-chat,
    the format of Chinese-Alpaca models.
    """
    if chat_template is not None:
        return OWN_TEMPLATE
    if "<|start_header_id|>" in tokenizer.special_tokens:
        return "llama-3"
    return "chatml" if "<|im_start|>" in tokenizer.special_tokens else "alpaca-chat"


def _in_our_template(tokenizer: Tokenizer, prompt: RenderedPrompt) -> BuiltPrompt:
    row = find_template(prompt.template)
    special = tokenizer.special_tokens
    stop_ids = frozenset(special[piece] for piece in row.stop_pieces if piece in special)
    token_ids = _not_empty(tokenizer, tokenizer.encode_segments(prompt.segments))
    return BuiltPrompt(token_ids, prompt.template, row.stop, stop_ids)


def _in_own_template(
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    messages: list[Message],
    options: TemplateOptions,
) -> Steps[BuiltPrompt]:
    if chat_template is None:
        raise InvalidRequest(
            "This model has no chat template.", "Name one of our templates, alpaca for example."
        )
    segments = yield from chat_template.render(messages, tokenizer, options)
    # Such a template itself writes the beginning of text if the model needs one.
    token_ids = tokenizer.encode_segments(segments, add_bos=False)
    end = _last_text(segments)
    form = OutputForm(
        calls=chat_template.call_format if options.tools else None,
        names=frozenset(tool["function"]["name"] for tool in options.tools),
        thinks=chat_template.thinks and not end.endswith(END_THINK),
        begins_thinking=chat_template.thinks and end.endswith(THINK),
    )
    return BuiltPrompt(_not_empty(tokenizer, token_ids), OWN_TEMPLATE, form=form)


def _last_text(segments: Sequence[Segment]) -> str:
    """Returns the end of a prompt without white space, special tokens included."""
    last = (segment.text if isinstance(segment, Text) else segment.piece for segment in segments[-2:])
    return "".join(last).rstrip()


def _not_empty(tokenizer: Tokenizer, token_ids: list[int]) -> list[int]:
    """Returns the ids, or the beginning-of-text token if there are none: a model needs at least one token."""
    if token_ids or tokenizer.bos_id is None:
        return token_ids
    return [tokenizer.bos_id]
