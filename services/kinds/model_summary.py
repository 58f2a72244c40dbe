"""Summary of a model, as the API returns it and as results of jobs that make a model carry it."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.generate_engines import Engine

ModelKind = Literal["original", "huggingface", "adapter", "tokenizer", "gguf", "unknown"]


class FileSummary(BaseModel):
    """A file of a model: its path inside the folder and its size in bytes."""

    model_config = ConfigDict(frozen=True)

    path: str
    size_bytes: int


class TokenizerSummary(BaseModel):
    """A model's tokenizer file."""

    model_config = ConfigDict(frozen=True)

    kind: str
    size: int
    sha256: str
    known_as: str | None = None


class ModelSummary(BaseModel):
    """Summary of a model from its headers, its configuration and its manifest."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: ModelKind
    size_bytes: int
    files: list[FileSummary] = []
    parameters: int | None = None
    dtypes: list[str] = []
    vocabulary_size: int | None = None
    architecture: dict[str, Any] | None = None
    ranks: int | None = None
    adapter: dict[str, Any] | None = None
    tokenizer: TokenizerSummary | None = None
    known_as: str | None = None
    digest: str | None = None
    created_at: datetime | None = None
    lineage: dict[str, Any] | None = None
    problems: list[str] = []
    warnings: list[str] = []
    engine: Engine | None = Field(
        default=None, description="The engine that generates with it; null if none does."
    )
