"""`tokenize`: texts or a conversation become token ids, or token ids become texts, without the model's weights."""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from services.kinds.generate import GenerateRequest
from services.kinds.shared import (
    MESSAGES_LIMIT,
    AdapterChoice,
    JobRequest,
    JobResult,
    ModelName,
    Result,
    unique_names,
)
from services.kinds.tools import TOOLS_LIMIT, AnyTool, NamedTool
from services.templates import Message
from services.validation import is_none, reason_of

TEXTS_LIMIT = 1000
"""Most texts, or lists of token ids, of a request."""

CHARACTERS_LIMIT = 2_000_000
"""Most characters of all texts of a request together."""

TOKENS_LIMIT = 500_000
"""Most token ids of a request."""

INPUTS = ("texts", "token_ids", "messages")

CONVERSATION_FIELDS = ("template", "tools", "tool_choice", "chat_template_kwargs")
"""Fields of a conversation, with the names and meanings that they have in `generate` requests."""

TokenIdList = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=TOKENS_LIMIT)]


class TokenizeRequest(JobRequest):
    """Turn texts or a conversation into token ids, or token ids into texts, with the tokenizer of a model."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Turn texts into token ids",
        "value": {"kind": "tokenize", "model": "chinese-alpaca-7b", "texts": ["Tell me about alpacas."]},
    }

    kind: Literal["tokenize"]
    model: ModelName
    adapters: list[AdapterChoice] = Field(
        default=[],
        max_length=8,
        description="Adapters on the fly: the tokenizer is that of the merged model.",
    )
    texts: list[Annotated[str, Field(max_length=1_000_000)]] | None = Field(
        default=None, min_length=1, max_length=TEXTS_LIMIT
    )
    token_ids: list[TokenIdList] | None = Field(default=None, min_length=1, max_length=TEXTS_LIMIT)
    messages: list[Message] | None = Field(
        default=None,
        min_length=1,
        max_length=MESSAGES_LIMIT,
        exclude_if=is_none,
        description="A conversation: its token ids are the prompt that a `generate` job has of it.",
    )
    template: str | None = Field(default=None, max_length=64, exclude_if=is_none)
    tools: Annotated[list[AnyTool], Field(max_length=TOOLS_LIMIT)] | None = Field(
        default=None, exclude_if=is_none
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        default=None, exclude_if=is_none
    )
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, exclude_if=is_none)
    add_generation_prompt: bool | None = Field(
        default=None,
        exclude_if=is_none,
        description="false: the conversation ends with its last message, without the beginning of an answer.",
    )
    add_special_tokens: bool = Field(
        default=True, description="Begin each text as the model's prompts begin, with the token for that."
    )
    parse_special: bool = Field(
        default=False,
        description="Text that looks like a special token, `</s>` for example, becomes that token.",
    )
    return_pieces: bool = Field(
        default=False, description="Return each token as the vocabulary writes it too."
    )

    @property
    def reads(self) -> list[str]:
        """The model and its adapters."""
        return unique_names(self.model, *(adapter.name for adapter in self.adapters))

    @cached_property
    def conversation(self) -> GenerateRequest:
        """The `generate` request of the conversation."""
        fields = {name: getattr(self, name) for name in ("model", "adapters", *CONVERSATION_FIELDS)}
        sampling = {"max_new_tokens": 0}
        return GenerateRequest(kind="generate", messages=self.messages, sampling=sampling, **fields)

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        given = [name for name in INPUTS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"exactly one of {', '.join(INPUTS)} is needed, found {found}")
        characters = sum(map(len, self.texts or []))
        if characters > CHARACTERS_LIMIT:
            raise ValueError(f"the texts have {characters} characters; at most {CHARACTERS_LIMIT} are taken")
        tokens = sum(map(len, self.token_ids or []))
        if tokens > TOKENS_LIMIT:
            raise ValueError(f"token_ids has {tokens} ids; at most {TOKENS_LIMIT} are taken")
        return self

    @model_validator(mode="after")
    def _conversation_is_valid(self) -> Self:
        if self.messages is not None:
            try:
                _ = self.conversation
            except ValidationError as error:
                raise ValueError(reason_of(error.errors()[0]["msg"])) from error
            return self
        names = [
            name
            for name in (*CONVERSATION_FIELDS, "add_generation_prompt")
            if getattr(self, name) is not None
        ]
        if names:
            raise ValueError(f"{names[0]} belongs to messages")
        return self


class TokenizerFacts(Result):
    """Tokens with a role, as they are written, null for those that the tokenizer lacks; the model's own chat template."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    vocabulary_size: int
    chat_template: str | None


class TokenizeResult(JobResult):
    """`token_ids` of the texts or of the conversation, or `texts` of the token ids, in order, and the tokenizer.

    Of a conversation also the name of its `template`, and fields of the request that were left out.
    """

    token_ids: list[list[int]] | None = None
    texts: list[str] | None = None
    pieces: list[list[str]] | None = None
    tokenizer: TokenizerFacts
    template: str | None = None
    ignored: list[str] | None = None
