"""Results of jobs that make or check a model."""

from typing import Any

from rich.filesize import decimal

from graftwerk.notebook import html_of
from graftwerk.result import JobResult, Result


class FileSummary(Result):
    """A file of a model: its path inside the folder and its size in bytes."""

    path: str
    size_bytes: int


class TokenizerSummary(Result):
    """A model's tokenizer file."""

    kind: str
    size: int
    sha256: str
    known_as: str | None = None


class ModelSummary(Result):
    """A model on the volume according to its headers, its configuration and its manifest."""

    name: str
    kind: str
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
    created_at: str | None = None
    lineage: dict[str, Any] | None = None
    problems: list[str] = []
    warnings: list[str] = []
    engine: str | None = None

    def __repr__(self) -> str:
        size = decimal(self.size_bytes)
        parameters = f", {self.parameters:,} parameters" if self.parameters else ""
        return f"<ModelSummary {self.name}: {self.kind}{parameters}, {size}>"

    def _repr_html_(self) -> str:
        return html_of(self.name, self.model_dump(mode="json", exclude_unset=True, exclude={"name"}))


class MadeModel(JobResult):
    """The model that a job has published."""

    model: ModelSummary
    warnings: list[str] = []


class ImportResult(MadeModel):
    """Counts of the files that were copied."""

    bytes_written: int
    files: int


class PublishToHubResult(JobResult):
    """The commit of an upload to the Hub."""

    commit: str
    repository: str
    url: str
    private: bool
    files: int
    size_bytes: int


class ResumedWork(Result):
    """Work of a killed execution that was reused."""

    tensors: int
    bytes: int


class TokenizerParity(Result):
    """Lines of mixed text, and those that `tokenizer.json` tokenizes differently from `tokenizer.model`."""

    lines: int
    different: int


class ImatrixSummary(Result):
    """The importance matrix that an output was encoded with: read from `file`, or computed from `text_file`."""

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
    bits_per_weight: float | None = None
    imatrix: ImatrixSummary | None = None
    tensor_digest: str | None = None
    tokenizer_parity: TokenizerParity | None = None
    resumed: ResumedWork = ResumedWork(tensors=0, bytes=0)
    same_as: str | None = None


class ConvertResult(WrittenCheckpoint):
    """Figures of a conversion; `dropped` are source tensors that the other layout computes itself."""

    dropped: list[str] = []
    ranks: int | None = None
    kl_divergence: float | None = None
    same_top_token: float | None = None


class LogitsComparison(Result):
    """Logits of the whole model compared with those of base and adapters, relative to their size."""

    passed: bool
    positions: int
    largest_difference: float | None
    relative_difference: float | None
    tolerance: float | None
    greedy_agreement: float | None


class ComputedChecks(Result):
    """Rows and logits that were computed again from base and adapters."""

    tensors: int | None = None
    rows_recomputed: int | None = None
    largest_difference: float | None = None
    largest_share_of_tolerance: float | None = None
    largest_difference_at: str | None = None
    vocabulary_size: int | None = None
    tokenizer_size: int | None = None
    logits: LogitsComparison | None = None


class AdapterAccount(Result):
    """Use of an adapter's tensors, and the Frobenius norm of its change by kind of module."""

    adapter: str
    scale: float
    tensors: int
    merged: int
    replaced: int
    rows_replaced: int
    rows_added: int = 0
    change_norms: dict[str, float | None] = {}


class MergeVerification(ComputedChecks):
    """Report of the verification of a merge, before it was published."""

    passed: bool
    digests_equal: int


class BaseQuantization(Result):
    """Rounding of the base's linear weights to 4 bits and back; `stored`: the base's files hold them in 4 bits."""

    tensors: int
    quant_type: str
    block_size: int
    double_quantization: bool
    stored: bool


class PrecisionDifference(Result):
    """Difference between the merges into the original and into the dequantized base, for one kind of module."""

    relative_norm: float | None
    differing_elements: int
    elements: int


class MergeResult(WrittenCheckpoint):
    """Figures of a merge; `verification` is null if it was switched off."""

    adapters: list[AdapterAccount]
    verification: MergeVerification | None
    vocabulary_size: int
    device: str
    base_quantization: BaseQuantization | None = None
    precisions: dict[str, PrecisionDifference] | None = None


class Difference(Result):
    """A deviation from the manifest or the recomputation, in a `tensor` or in a `file`."""

    tensor: str | None = None
    file: str | None = None
    message: str


class VerifyResult(JobResult, ComputedChecks):
    """Report of a verification; `passed` is the verdict, `differences` are the reasons."""

    model: str
    against: list[str]
    passed: bool
    differences: list[Difference]
    digests_equal: int | None = None
    files: int | None = None
    unlisted_files: list[str] = []


class VocabularyCounts(Result):
    """Pieces of the base, appended ones, those present in both, and all."""

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


class TensorError(Result):
    """Relative Frobenius error of the product that an adapter holds for one change; 0 for a tensor that is held whole."""

    tensor: str
    error: float
    norm: float | None = None
    rounding: float | None = None


class MadeAdapter(MadeModel):
    """Figures of an adapter that was computed; `error` is that of all LoRA pairs together."""

    rank: int
    error: float
    errors: list[TensorError]
    pairs: int
    replaced: int
    bytes_read: int
    bytes_written: int
    tensors: int
    tensor_digest: str | None = None
    same_as: str | None = None


class ExtractResult(MadeAdapter):
    """Figures of an extracted adapter; `unchanged` counts the tensors that are equal in both models."""

    unchanged: int
    vocabulary_size: int


class CombineResult(MadeAdapter):
    """Figures of a combined adapter."""
