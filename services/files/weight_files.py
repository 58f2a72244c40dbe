"""Files that hold tensors: `.safetensors`, `.pth` and `.bin`, single or sharded by an index."""

from collections.abc import Iterable
from pathlib import Path

from services.errors import ConfigMismatch, IncompleteCheckpoint
from services.files.json_file import read_json
from services.files.safetensors_header import read_safetensors_header
from services.files.tensors import TensorHeader
from services.files.torch_zip import read_torch_header

Tensors = dict[str, TensorHeader]
"""Tensors by name, in the order of their files."""


def read_weights(folder: Path) -> Tensors:
    """Returns the tensors of a Hugging Face folder, single or sharded; `.safetensors` takes precedence over `.bin`.

    Raises:
        IncompleteCheckpoint: There are no weights, or a shard of the index is missing.
        ConfigMismatch: Index and shards disagree.
    """
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, single = folder / f"{stem}.{ending}.index.json", folder / f"{stem}.{ending}"
        if index.is_file():
            return _read_sharded(index)
        if single.is_file():
            return read_tensor_file(single)
    raise IncompleteCheckpoint(
        f"{folder.name} has a config.json and no weights (model.safetensors or pytorch_model.bin, single or sharded).",
        "Add the weight files.",
    )


def read_tensor_file(path: Path) -> Tensors:
    """Returns the tensors of one file; its suffix says the format."""
    return read_safetensors_header(path) if path.suffix == ".safetensors" else read_torch_header(path)


def _read_sharded(index: Path) -> Tensors:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise IncompleteCheckpoint(f"{index.name} has no weight_map.", "Fetch the index again.")
    shards: dict[str, list[str]] = {}
    for name, shard in where.items():
        shards.setdefault(shard, []).append(name)
    tensors: Tensors = {}
    for shard in sorted(shards):
        tensors.update(_read_shard(index, shard, shards[shard]))
    return tensors


def _read_shard(index: Path, shard: str, names: Iterable[str]) -> Tensors:
    path = index.parent / shard
    if Path(shard).name != shard or not path.is_file():
        raise IncompleteCheckpoint(
            f"{index.name} names {shard}, which is missing.",
            f"Add {shard}: all shards of the index are needed.",
        )
    found = read_tensor_file(path)
    odd = sorted(set(names) ^ set(found))
    if odd:
        raise ConfigMismatch(
            f"{index.name} and {shard} disagree on {len(odd)} tensors; the first is {odd[0]!r}.",
            "Index and shards are of different downloads: fetch both again.",
        )
    return found
