"""`tokenize`: texts become token ids, or token ids become texts, without the model's weights."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.kinds.shared import AdapterChoice, JobRequest, JobResult, ModelName, Result, unique_names

TEXTS_LIMIT = 1000
"""Most texts, or lists of token ids, of a request."""

CHARACTERS_LIMIT = 2_000_000
"""Most characters of all texts of a request together."""

TOKENS_LIMIT = 500_000
"""Most token ids of a request."""

TokenIdList = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=TOKENS_LIMIT)]


class TokenizeRequest(JobRequest):
    """Turn texts into token ids, or token ids into texts, with the tokenizer of a model."""

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

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.texts is None) == (self.token_ids is None):
            raise ValueError("exactly one of texts and token_ids is needed")
        characters = sum(map(len, self.texts or []))
        if characters > CHARACTERS_LIMIT:
            raise ValueError(f"the texts have {characters} characters; at most {CHARACTERS_LIMIT} are taken")
        tokens = sum(map(len, self.token_ids or []))
        if tokens > TOKENS_LIMIT:
            raise ValueError(f"token_ids has {tokens} ids; at most {TOKENS_LIMIT} are taken")
        return self


class TokenizerFacts(Result):
    """Tokens with a role, as they are written, null for those that the tokenizer lacks; the model's own chat template."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    vocabulary_size: int
    chat_template: str | None


class TokenizeResult(JobResult):
    """`token_ids` of the texts or `texts` of the token ids, in order, and the tokenizer."""

    token_ids: list[list[int]] | None = None
    texts: list[str] | None = None
    pieces: list[list[str]] | None = None
    tokenizer: TokenizerFacts
