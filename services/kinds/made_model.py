"""Results of jobs that make a model."""

from pydantic import Field

from services.kinds.model_summary import ModelSummary
from services.kinds.shared import JobResult, Result


class MadeModel(JobResult):
    """The model that a job has published."""

    model: ModelSummary
    warnings: list[str] = []


class ResumedWork(Result):
    """Work of a killed execution that was reused."""

    tensors: int
    bytes: int


class TokenizerParity(Result):
    """Lines of mixed text, and those for which `tokenizer.json` gives other tokens than `tokenizer.model`."""

    lines: int
    different: int


class ImatrixSummary(Result):
    """The importance matrix that an output was encoded with.

    It was read from `file`, or computed from `text_file`; `datasets` are the texts that a file names. `entries` counts the
    matrices that it weighs, `tokens` those of all chunks.
    """

    file: str | None = None
    text_file: str | None = None
    datasets: list[str] = []
    entries: int
    chunks: int
    chunk_size: int
    tokens: int


class WrittenCheckpoint(MadeModel):
    """Figures of a model whose tensors were written by a conversion or a merge."""

    bytes_read: int
    bytes_written: int
    tensors: int
    bits_per_weight: float | None = Field(
        default=None, description="Bits of an average element of a `gguf` output; null for the other formats."
    )
    imatrix: ImatrixSummary | None = None
    tensor_digest: str | None = Field(
        default=None, description="SHA-256 over the tensors' names, dtypes, shapes and digests."
    )
    tokenizer_parity: TokenizerParity | None = None
    resumed: ResumedWork = ResumedWork(tensors=0, bytes=0)
    same_as: str | None = Field(
        default=None, description="The model of an identical earlier request; nothing was computed."
    )
