"""Importance of the columns of matrices: the mean square of each input, by which the encoders weigh errors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from services.checkpoints.gguf_encoding import Importance
from services.errors import UnsupportedOption
from services.files.gguf_header import GgufTensor
from services.files.gguf_imatrix import COUNTS, MAKE_AGAIN, SUMS, ImatrixHeader
from services.kinds.made_model import ImatrixSummary

PART = 16
"""Columns of the smallest part of a block that has a scale of its own: without any importance the encoders make it zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceMatrix:
    """Importance of the columns of each matrix.

    Attributes:
        rows: Importance of each column, by GGUF's name of the matrix.
        identity: What distinguishes it from others, by its `repr`: the digest of the file or the text.
        summary: Account for the result and GGUF's metadata.
    """

    rows: Mapping[str, Importance] = field(repr=False)
    identity: tuple[str, ...]
    summary: ImatrixSummary


def read_importance(header: ImatrixHeader, identity: tuple[str, ...], name: str) -> ImportanceMatrix:
    """Returns the importance matrix of a file.

    Args:
        name: Path of the file on the volume.

    Raises:
        UnsupportedOption: A value is negative, NaN or infinite, a count is not positive, or neighboring columns are all zero.
    """
    rows, most = {}, 0
    for matrix in header.widths:
        count = float(_values(header, header.header.tensors[matrix + COUNTS])[0])
        if not (np.isfinite(count) and count >= 1):
            raise UnsupportedOption(
                f"{header.header.path.name} has the count {count} of {matrix!r}: it has no data.", MAKE_AGAIN
            )
        most = max(most, round(count))
        # divided in float32 by a whole number, as llama-quantize does
        rows[matrix] = _values(header, header.header.tensors[matrix + SUMS]) / np.float32(round(count))
        check_importance(header.header.path.name, matrix, rows[matrix])
    summary = ImatrixSummary(
        file=name, datasets=list(header.datasets), entries=len(rows), chunks=header.chunks,
        chunk_size=header.chunk_size, tokens=most,
    )  # fmt: skip
    return ImportanceMatrix(rows=rows, identity=identity, summary=summary)


def _values(header: ImatrixHeader, tensor: GgufTensor) -> Importance:
    return np.fromfile(header.header.path, np.dtype("<f4"), tensor.elements, offset=tensor.offset)


def check_importance(origin: str, matrix: str, row: Importance) -> None:
    """Refuses a row that the encoders would take silently and encode wrongly.

    Args:
        origin: Name of the file or the text, for the message.

    Raises:
        UnsupportedOption: A value is negative, NaN or infinite, or neighboring columns are all zero.
    """
    wrong = ~(np.isfinite(row) & (row >= 0))
    if wrong.any():
        column = int(wrong.argmax())
        raise UnsupportedOption(
            f"{origin}: the importance of {matrix!r} is {row[column]} in column {column}; it is a mean of squares.",
            MAKE_AGAIN,
        )
    whole = row[: len(row) // PART * PART].reshape(-1, PART)
    dead = ~whole.any(axis=1)
    if dead.any():
        first = int(dead.argmax()) * PART
        raise UnsupportedOption(
            f"{origin}: the importance of {matrix!r} is zero in columns {first} to {first + PART - 1}; the encoders would make "
            "all weights of these columns zero.",
            "Use a longer or more varied text.",
        )
