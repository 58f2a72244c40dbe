"""`extend-tokenizer`: pieces of one SentencePiece vocabulary are appended to another."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from services.kinds.made_model import MadeModel, TokenizerParity
from services.kinds.shared import MakeRequest, ModelName, Result, unique_names


class ExtendTokenizerRequest(MakeRequest):
    """Append to a SentencePiece vocabulary the pieces of another that it lacks; nothing else changes."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Append Chinese pieces to LLaMA's vocabulary",
        "value": {
            "kind": "extend-tokenizer",
            "base": "llama-7b",
            "addition": "chinese-sp",
            "target": "chinese-alpaca-tokenizer",
            "pad_token": "[PAD]",
        },
    }

    kind: Literal["extend-tokenizer"]
    base: ModelName
    addition: ModelName
    pad_token: str | None = Field(
        default=None, min_length=1, max_length=64, description="Appended last.", examples=["[PAD]"]
    )

    @property
    def reads(self) -> list[str]:
        """Both tokenizers."""
        return unique_names(self.base, self.addition)

    @field_validator("pad_token")
    @classmethod
    def _is_one_piece(cls, token: str | None) -> str | None:
        if token is not None and (not token.isprintable() or " " in token):
            raise ValueError(f"a padding token has no spaces and no control characters, unlike {token!r}")
        return token


class VocabularyCounts(Result):
    """Pieces of the base, appended ones (the padding token included), those present in both, and all."""

    base: int
    added: int
    present: int
    total: int


class SampleTokenization(Result):
    """One sample text, tokenized with the base and with the extended vocabulary."""

    text: str
    tokens_before: int
    tokens_after: int
    before: str
    after: str


class ExtendTokenizerResult(MadeModel):
    """Counts, digest and sample tokenizations of an extended vocabulary."""

    counts: VocabularyCounts
    sha256: str
    samples: list[SampleTokenization]
    tokenizer_parity: TokenizerParity | None = None
