"""Importance matrix of an output: is its file the model's, is its text there, and what does computing it take?"""

from dataclasses import dataclass

from services.architectures.gguf_imatrix import (
    MOST_CHUNKS,
    check_imatrix,
    chunk_size,
    computation_bytes,
)
from services.architectures.output_spec import OutputSpec
from services.errors import InvalidRequest
from services.files.gguf_imatrix import read_imatrix_header
from services.kinds.shared import OutputOptions
from services.models.store import ModelStore
from services.preflight.perplexity import check_text_file
from services.preflight.plan import PlannedRead

IMATRIX_BYTES = 256 * 2**20
"""Size limit of the file of an importance matrix; that of a model of 70 billion weights has 25 MB."""


@dataclass(frozen=True, slots=True)
class PlannedImatrix:
    """Parts of a plan that an importance matrix adds."""

    reads: tuple[PlannedRead, ...] = ()
    memory_bytes: int = 0
    warnings: tuple[str, ...] = ()


def planned_imatrix(request: OutputOptions, output: OutputSpec, store: ModelStore) -> PlannedImatrix:
    """Returns what the importance matrix of a request adds to its plan, nothing if it has none.

    Errors of `read_imatrix_header` and `check_imatrix` are raised as they are.

    Raises:
        InvalidRequest, SourceNotFound, InvalidName: the file or the text cannot be used.
    """
    if request.imatrix is None:
        return PlannedImatrix()
    if request.imatrix.file is None:
        return _computed(str(request.imatrix.text_file), output, store)
    path = store.incoming(request.imatrix.file)
    size = path.stat().st_size if path.is_file() else None
    if size is None or size > IMATRIX_BYTES:
        found = "is not a file" if size is None else f"has {size} bytes; at most {IMATRIX_BYTES} are read"
        raise InvalidRequest(
            f"{request.imatrix.file!r} {found}.", "Name a file that llama-imatrix has written."
        )
    check_imatrix(request.imatrix.file, read_imatrix_header(path).widths, output)
    read = PlannedRead(path=request.imatrix.file, role="imatrix", size_bytes=size)
    return PlannedImatrix((read,), memory_bytes=size)


def _computed(name: str, output: OutputSpec, store: ModelStore) -> PlannedImatrix:
    check_text_file(name, store)
    size = store.incoming(name).stat().st_size
    chunk = chunk_size(output.config)
    if not size:
        raise InvalidRequest(f"{name!r} is empty.", f"Give a text of at least {chunk} tokens.")
    read = PlannedRead(path=name, role="imatrix", size_bytes=size)
    warning = (
        f"The importance matrix is computed first, from at most {MOST_CHUNKS} chunks of {chunk} tokens of {name}: a forward pass of "
        f"the whole model over up to {MOST_CHUNKS * chunk} tokens."
    )
    return PlannedImatrix((read,), computation_bytes(output.config), (warning,))
