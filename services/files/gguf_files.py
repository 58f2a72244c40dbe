"""Files of a GGUF model: one, or the parts of one that was split.

The parts of a split model are named `<name>-00001-of-00003.gguf`; the first has the metadata, each has tensors of its own and their
number (ggml-org/llama.cpp `tools/gguf-split`: split.no, split.count, split.tensors.count).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from services.errors import IncompleteCheckpoint, UnreadableFile, UnsupportedFormat
from services.files.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from services.files.tensors import TensorHeader

PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
PARTS_LIMIT = 1000


@dataclass(frozen=True)
class GgufModel:
    """A model in one or several files: the metadata of the first, the tensors of all."""

    parts: tuple[GgufHeader, ...]

    @property
    def name(self) -> str:
        """Name of the first file, for messages."""
        return self.parts[0].path.name

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata of the first file."""
        return self.parts[0].metadata

    @property
    def architecture(self) -> str:
        """Name of the model's architecture, "llama" for LLaMA."""
        return self.parts[0].architecture

    @cached_property
    def tensors(self) -> Mapping[str, GgufTensor]:
        """Tensors of all files by name."""
        return {name: tensor for part in self.parts for name, tensor in part.tensors.items()}

    def raw(self, name: str) -> TensorHeader:
        """Returns a tensor's bytes as they are stored, as `GgufHeader.raw` does."""
        return next(part.raw(name) for part in self.parts if name in part.tensors)


def read_gguf_model(folder: Path, arrays: Collection[str] = ()) -> GgufModel:
    """Returns the headers of the GGUF model in a folder.

    Args:
        arrays: Keys of the arrays whose values are kept.

    Raises:
        UnsupportedFormat: The folder holds several models.
        IncompleteCheckpoint: A part of a split model is missing.
        UnreadableFile: A file is truncated or damaged, or the parts do not belong together.
    """
    first, *others = gguf_files(folder)
    parts = [read_gguf_header(first, arrays), *(read_gguf_header(path) for path in others)]
    _check_parts(parts)
    return GgufModel(tuple(parts))


def gguf_files(folder: Path) -> list[Path]:
    """Returns the files of the GGUF model in a folder, in order.

    Raises:
        UnsupportedFormat: The folder holds none, or several models.
        IncompleteCheckpoint: A part of a split model is missing.
    """
    paths = sorted(folder.glob("*.gguf"))
    names = {match[1] if (match := PART.fullmatch(path.name)) else path.name for path in paths}
    if len(names) != 1:
        found = ", ".join(path.name for path in paths[:4]) or "none"
        raise UnsupportedFormat(
            f"{folder.name} holds {len(names)} GGUF models ({found}); one is needed.",
            "Import one of the files as a model of its own.",
        )
    match = PART.fullmatch(paths[0].name)
    return paths if match is None else _all_parts(folder, match[1], int(match[3]))


def _all_parts(folder: Path, name: str, count: int) -> list[Path]:
    if not 1 <= count <= PARTS_LIMIT:
        raise UnsupportedFormat(f"{name} is split into {count} files; at most {PARTS_LIMIT} are read.")
    paths = [folder / f"{name}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise IncompleteCheckpoint(
            f"The GGUF model is split into {count} files; {missing[0]} is missing.",
            "Fetch all its files.",
        )
    return paths


def _check_parts(parts: list[GgufHeader]) -> None:
    counts = {
        part.metadata.get("split.count") or 1 for part in parts
    }  # 0 in files that were put together again
    numbers = [part.metadata.get("split.no", 0) for part in parts]
    if counts != {len(parts)} or numbers != list(range(len(parts))):
        raise UnreadableFile(
            f"{parts[0].path.name} is one of {len(parts)} files, whose headers say numbers {numbers} of "
            f"{', '.join(str(count) for count in counts)}.",
            "Fetch all files of one model, under their own names.",
        )
    tensors = [name for part in parts for name in part.tensors]
    announced = parts[0].metadata.get("split.tensors.count", len(tensors))
    if len(set(tensors)) != len(tensors) or announced != len(tensors):
        raise UnreadableFile(
            f"{parts[0].path.name} announces {announced} tensors in all files; they hold {len(tensors)}, "
            f"{len(set(tensors))} of different names.",
            "Fetch all files of one model again.",
        )
