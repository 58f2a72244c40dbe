"""Token ids and sampling limits of a request's prompts for one loaded model."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial

from services.errors import InvalidRequest, PromptTooLong, UnsupportedOption
from services.generate import (
    BuiltPrompt,
    LoadedModel,
    ServedModel,
    TemplateOptions,
    build_fitting,
    prompt_steps,
    template_name,
)
from services.isolation.process import Steps
from services.kinds.generate import GenerateRequest
from services.models.lineage import template_of_lineage
from services.models.prompt_file import PromptEntry
from services.models.store import ModelStore
from services.sampling import Sampling
from services.templates import OWN_TEMPLATE, RAW_TEMPLATE, Message, PromptParts, name_of_jinja_text

FREE_SHARE = 2
"""An output without a limit of its own takes this fraction (1/2) of the memory of keys and values, with its prompt, so that others run too."""

OUTPUT_SHARE = 4
"""Turns are dropped until the output has room for its new tokens, or for this fraction (1/4) of the context."""


class PromptBuilder:
    """Builds the prompts of one request."""

    def __init__(
        self,
        request: GenerateRequest,
        loaded: LoadedModel | ServedModel,
        store: ModelStore,
        *,
        most_tokens: int | None = None,
        add_generation_prompt: bool = True,
    ) -> None:
        """Keeps what all prompts of the request share.

        Args:
            most_tokens: of the longest sequence for which there is memory, None without a limit.
            add_generation_prompt: without it the prompts are conversations that end with their last messages.
        """
        self._options = TemplateOptions(add_generation_prompt=add_generation_prompt)
        self._request, self._loaded, self._store = request, loaded, store
        self._most_tokens = sys.maxsize if most_tokens is None else most_tokens
        self._tools = [tool.json_value for tool in request.offered_tools]
        self.ignored: set[str] = set(request.other_tools)
        """Fields of the request that were left out of prompts."""

    def build(self, entry: PromptEntry) -> Steps[tuple[BuiltPrompt, int | None]]:
        """Returns the prompt, and the number of dropped turns if the request allows to drop any, else None.

        Raises:
            UnknownTemplate, InvalidRequest, InvalidText, TemplateLimitExceeded: see `prompt_steps`.
        """
        if entry.prompt_token_ids is not None:
            return self._given(entry.prompt_token_ids), None
        parts = self._parts(entry)
        self._choose_tools(parts)
        if parts.messages is None or self._request.fit_context is not True:
            return self._checked((yield from self._build(parts, parts.messages))), None
        context = min(self._loaded.context_length, self._most_tokens)
        room = min(self._request.sampling.max_new_tokens, context // OUTPUT_SHARE)
        prompt, dropped = yield from build_fitting(
            partial(self._build, parts), parts.messages, context - room
        )
        return self._checked(prompt), dropped

    def template(self, entry: PromptEntry) -> str:
        """Returns the name of the template of a prompt."""
        if entry.prompt_token_ids is not None:
            return RAW_TEMPLATE
        loaded = self._loaded
        return template_name(loaded.tokenizer, self._parts(entry), chat_template=loaded.chat_template)

    def fit(self, prompt: BuiltPrompt) -> Sampling:
        """Returns the request's sampling, with `max_new_tokens` lowered to the context and the memory if the request allows it."""
        sampling, tokens, most = self._request.sampling, len(prompt.token_ids), self._most_tokens
        in_memory = min(most - tokens, max(most // FREE_SHARE - tokens, most // OUTPUT_SHARE))
        room = min(self._loaded.context_length - tokens, in_memory)
        if not self._request.fit_context or room < 1 or sampling.max_new_tokens <= room:
            return sampling
        least = min(sampling.min_new_tokens, room)
        return sampling.model_copy(update={"max_new_tokens": room, "min_new_tokens": least})

    def _given(self, token_ids: Sequence[int]) -> BuiltPrompt:
        rows = self._loaded.rows
        position = next((at for at, token_id in enumerate(token_ids) if token_id >= rows), None)
        if position is not None:
            raise InvalidRequest(
                f"prompt_token_ids has {token_ids[position]} at position {position}, and the model has {rows} tokens.",
                f"Send ids from 0 to {rows - 1}, of the model's own tokenizer.",
            )
        return BuiltPrompt([*token_ids], RAW_TEMPLATE)

    def _parts(self, entry: PromptEntry) -> PromptParts:
        """Returns the entry's parts; a model without a chat template gets that of its lineage for conversations.

        A chat template that is the Jinja text of one of ours is that one: it has stop strings too.
        """
        parts = entry.parts(self._request)
        own = self._loaded.chat_template
        ours = name_of_jinja_text(own.text) if own else None
        if parts.template is None and parts.messages is not None and (own is None or ours is not None):
            return replace(parts, template=self._template_of_lineage or ours)
        return parts

    @cached_property
    def _template_of_lineage(self) -> str | None:
        adapters = [choice.name for choice in self._request.adapters]
        return template_of_lineage(self._store, self._request.model, adapters)

    def _choose_tools(self, parts: PromptParts) -> None:
        """Leaves tools out that the prompt's template cannot describe, or whose calls cannot be read.

        Raises:
            UnsupportedOption: a call is required.
        """
        request, template = self._request, self._loaded.chat_template
        self._options = replace(
            self._options, tools=self._tools, variables=request.chat_template_kwargs or {}
        )
        if not self._tools and not request.chat_template_kwargs:
            return
        is_own = (
            template_name(self._loaded.tokenizer, parts, chat_template=template) == OWN_TEMPLATE
            and template is not None
        )
        if not is_own and request.chat_template_kwargs:
            self.ignored.add("chat_template_kwargs")
        if not self._tools or (is_own and template is not None and template.call_format is not None):
            return
        if request.is_call_required:
            raise UnsupportedOption(
                f"tool_choice requires a call, and {'the chat template of' if is_own else 'the template of this prompt for'} "
                f"{request.model} has no form for tools that is known.",
                "Use a model whose own chat template takes tools, or leave tool_choice out.",
            )
        self.ignored.add("tools")
        self._options = replace(self._options, tools=())

    def _checked(self, prompt: BuiltPrompt) -> BuiltPrompt:
        """Returns the prompt. Raises PromptTooLong if the tools do not fit into the context together with the messages."""
        context, count = self._loaded.context_length, len(prompt.token_ids)
        if self._options.tools and count >= context:
            raise PromptTooLong(
                f"The conversation and its {len(self._options.tools)} tools have {count} tokens; the model's context is {context}.",
                "Offer fewer tools, or with shorter descriptions.",
            )
        request = self._request
        form = replace(
            prompt.form,
            one_call=request.parallel_tool_calls is False,
            is_required=request.is_call_required,
        )
        return replace(prompt, form=form)

    def _build(self, parts: PromptParts, messages: Sequence[Message] | None) -> Steps[BuiltPrompt]:
        loaded = self._loaded
        return prompt_steps(
            loaded.tokenizer,
            replace(parts, messages=messages),
            chat_template=loaded.chat_template,
            options=self._options,
        )
