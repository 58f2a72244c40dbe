"""Tensors of a model's files, from their headers, in parts that a page can show."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from services.errors import GraftwerkError
from services.files.gguf_header import read_gguf_header
from services.files.weight_files import read_tensor_file

WEIGHT_FILES = (
    "*.safetensors", "*.gguf", "consolidated.*.pth", "pytorch_model*.bin", "adapter_model.bin",
)  # fmt: skip
"""Patterns of files with weights; other `.pth` and `.bin` files are states of a training."""

ROWS_LIMIT = 200
"""Most tensors of one part."""

PROBLEMS_LIMIT = 20


class TensorRow(BaseModel):
    """A tensor as its file stores it: `dtype` is safetensors' or GGUF's name, `shape` counts elements."""

    name: str
    dtype: str
    shape: list[int]
    size_bytes: int
    file: str


class TensorList(BaseModel):
    """A part of the tensors whose names contain a text.

    Attributes:
        matching: Number of all tensors that match.
        matching_bytes: Their bytes.
        total: Number of all tensors.
        problems: Reasons why files could not be read.
    """

    rows: list[TensorRow] = []
    matching: int = 0
    matching_bytes: int = 0
    total: int = 0
    problems: list[str] = []


def list_tensors(folder: Path, search: str = "", offset: int = 0, limit: int = 100) -> TensorList:
    """Returns the tensors of a folder, in the order of files and names, from the `offset`th that matches `search` on."""
    found, wanted = TensorList(), search.lower()
    last = offset + min(limit, ROWS_LIMIT)
    for path in weight_files(folder):
        try:
            rows = sorted(_rows(path, folder), key=lambda row: row.name)
        except GraftwerkError as error:
            found.problems.append(f"{error.message} {error.hint}".strip())
            continue
        found.total += len(rows)
        for row in rows:
            if wanted not in row.name.lower():
                continue
            if offset <= found.matching < last:
                found.rows.append(row)
            found.matching += 1
            found.matching_bytes += row.size_bytes
    del found.problems[PROBLEMS_LIMIT:]
    return found


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that hold weights, by path."""
    found = {path for pattern in WEIGHT_FILES for path in folder.rglob(pattern)}
    return sorted(path for path in found if path.is_file())


def _rows(path: Path, folder: Path) -> Iterator[TensorRow]:
    file = path.relative_to(folder).as_posix()
    if path.suffix == ".gguf":
        for tensor in read_gguf_header(path).tensors.values():
            yield TensorRow(
                name=tensor.name, dtype=tensor.encoding, shape=list(tensor.shape),
                size_bytes=tensor.size_bytes, file=file,
            )  # fmt: skip
        return
    for header in read_tensor_file(path).values():
        yield TensorRow(
            name=header.name, dtype=header.dtype, shape=list(header.shape),
            size_bytes=header.size_bytes, file=file,
        )  # fmt: skip
