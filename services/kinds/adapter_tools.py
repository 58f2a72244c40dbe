"""Parts of the results of `extract` and `combine`."""

from pydantic import Field

from services.kinds.made_model import MadeModel
from services.kinds.shared import Result


class TensorError(Result):
    """Relative Frobenius error of the product that the adapter holds for one change; 0 for a tensor that is held whole."""

    tensor: str
    error: float
    norm: float | None = Field(default=None, description="Frobenius norm of the change.")
    rounding: float | None = Field(
        default=None,
        description="Estimated share of the change that is rounding of the fine-tuned model's dtype.",
    )


class MadeAdapter(MadeModel):
    """Figures of an adapter that was computed from others or from models.

    `error` is that of all LoRA pairs together: the Frobenius norm of everything that is missing, by that of all changes.
    """

    rank: int
    error: float
    errors: list[TensorError]
    pairs: int
    replaced: int
    bytes_read: int
    bytes_written: int
    tensors: int
    tensor_digest: str | None = Field(
        default=None, description="SHA-256 over the tensors' names, dtypes, shapes and digests."
    )
    same_as: str | None = Field(
        default=None, description="The adapter of an identical earlier request; nothing was computed."
    )
