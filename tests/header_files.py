"""Small tensor files in both formats, for the tests of headers."""

from pathlib import Path

from tests.reference.tensor_files import (
    safetensors_file,
)
from tests.reference.torch_files import torch_file

SHAPES = {"a": (3, 5), "b": (7,), "c": (2, 1, 4)}
FORMATS = {"model.safetensors": safetensors_file(SHAPES), "model.bin": torch_file(SHAPES)}


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
