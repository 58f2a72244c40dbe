"""Original LLaMA checkpoints: one `consolidated.NN.pth` per model-parallel rank and `params.json`."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from services.architectures.checkpoint import Checkpoint, TensorSource
from services.architectures.checkpoint_checks import (
    check_complete,
    check_layers,
    check_vocabulary,
    find_vocabulary,
    only_floats,
)
from services.architectures.config import MetaSizes, ModelConfig, params_to_config, read_params
from services.architectures.expected_tensors import Expected, expected_tensors
from services.architectures.families.llama import BY_META
from services.architectures.key_map import (
    Join,
    Row,
    Shape,
    kind_of,
    rotary_heads,
)
from services.errors import IncompleteCheckpoint, ShapeMismatch, UnknownTensor, UnsupportedFormat
from services.files.tensors import TensorHeader
from services.files.torch_zip import read_torch_header
from services.files.weight_files import Tensors

RANK_FILE = re.compile(r"consolidated\.([0-9]{2,4})\.pth")

EMBEDDINGS, OUTPUT = "tok_embeddings.weight", "output.weight"


def original_folder(folder: Path) -> Path | None:
    """Returns the folder of the `consolidated.*.pth`: this one, or the only subfolder that has them; None if there is none.

    A Hugging Face folder may have the original in a subfolder, as Llama 3's do; it remains a Hugging Face folder.

    Raises:
        UnsupportedFormat: Several subfolders have them.
    """
    if any(RANK_FILE.fullmatch(path.name) for path in folder.iterdir()):
        return folder
    if (folder / "config.json").is_file():
        return None
    inner = [
        sub for sub in sorted(folder.iterdir())
        if sub.is_dir() and any(RANK_FILE.fullmatch(path.name) for path in sub.iterdir())
    ]  # fmt: skip
    if len(inner) > 1:
        names = ", ".join(sub.name for sub in inner)
        raise UnsupportedFormat(
            f"{folder.name} holds several checkpoints ({names}); one is needed.",
            f"Import {folder.name}/{inner[0].name}.",
        )
    return inner[0] if inner else None


def read_original(folder: Path, weights: Path, *, instruct: bool) -> Checkpoint:
    files = _rank_files(weights)
    ranks = [only_floats(read_torch_header(path)) for path in files]
    if not (weights / "params.json").is_file():
        raise IncompleteCheckpoint(
            f"{weights.name} has {len(files)} consolidated.*.pth and no params.json.",
            "Add the original params.json.",
        )
    tokenizer_folder = _tokenizer_folder(folder, weights)
    vocabulary = find_vocabulary(tokenizer_folder)
    names = _names_of_ranks(files, ranks)
    shared = _shared_output(ranks)
    if shared:
        names.remove(OUTPUT)
    joins = {name: _meta_row(name, ranks) for name in names}
    params = read_params(weights / "params.json")
    sizes = _meta_sizes(ranks, joins)
    config = params_to_config(params, sizes, vocabulary=vocabulary, instruct=instruct)
    tensors = _meta_sources(config, ranks, joins)
    dropped = tuple(name for name, row in joins.items() if row.join is Join.DROPPED)
    dropped += (OUTPUT,) if shared else ()
    check_vocabulary(config, vocabulary, exact=True)
    return Checkpoint(
        folder, "meta", config, tensors, dropped, len(files), tokenizer_folder, vocabulary, tuple(files)
    )  # fmt: skip


def _rank_files(weights: Path) -> list[Path]:
    found = {int(match[1]): path for path in weights.iterdir() if (match := RANK_FILE.fullmatch(path.name))}
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        raise IncompleteCheckpoint(
            f"{weights.name} has consolidated.*.pth for ranks {sorted(found)}; rank {missing[0]} is missing.",
            f"Add consolidated.{missing[0]:02d}.pth.",
        )
    return [found[rank] for rank in sorted(found)]


def _tokenizer_folder(folder: Path, weights: Path) -> Path:
    """Returns the folder of tokenizer.model: that of the weights, or the model's folder above it."""
    return weights if (weights / "tokenizer.model").is_file() else folder


def _names_of_ranks(files: list[Path], ranks: list[Tensors]) -> list[str]:
    for path, tensors in zip(files, ranks, strict=True):
        odd = sorted(set(tensors) ^ set(ranks[0]))
        if odd:
            raise IncompleteCheckpoint(
                f"{files[0].name} and {path.name} do not hold the same tensors: {odd[0]!r} is in one of them only.",
                "The files are of different checkpoints or one is damaged: fetch them again.",
            )
    return list(ranks[0])


def _shared_output(ranks: list[Tensors]) -> bool:
    """Returns True if the output's bytes are those of the embeddings: torch saves tied weights in this way."""
    return all(
        OUTPUT in rank and EMBEDDINGS in rank and replace(rank[OUTPUT], name=EMBEDDINGS) == rank[EMBEDDINGS]
        for rank in ranks
    )


def _meta_row(name: str, ranks: list[Tensors]) -> Row:
    row = BY_META.get(kind_of(name)[0])
    if row is None:
        raise UnknownTensor(
            f"{ranks[0][name].path.name} holds {name!r}, which is not a tensor of a LLaMA model.",
            "Only original checkpoints of LLaMA can be converted; nothing was dropped or written.",
        )
    return row


def _meta_sizes(ranks: list[Tensors], rows: Mapping[str, Row]) -> MetaSizes:
    first = ranks[0]
    for name in ("norm.weight", "tok_embeddings.weight", "layers.0.attention.wq.weight",
                 "layers.0.attention.wk.weight", "layers.0.feed_forward.w1.weight"):  # fmt: skip
        if name not in first:
            raise IncompleteCheckpoint(f"The checkpoint has no {name}.", "Fetch the checkpoint again.")
    for name in rows:
        if rows[name].join is not Join.DROPPED:
            _need_dims(first[name], 1 if rows[name].join is Join.REPLICATED else 2)

    def rows_of(name: str) -> int:
        return sum(rank[name].shape[0] for rank in ranks)

    dim = first["norm.weight"].shape[0]
    columns = sum(rank["tok_embeddings.weight"].shape[1] for rank in ranks)
    by_columns = first["tok_embeddings.weight"].shape[1] != dim
    if by_columns and columns != dim:
        raise IncompleteCheckpoint(
            f"tok_embeddings.weight has {columns} columns over {len(ranks)} ranks; norm.weight has {dim}.",
            "A rank's file is missing or of another checkpoint: all consolidated.*.pth are needed.",
        )
    n_layers = 1 + max(layer for name in rows if (layer := kind_of(name)[1]) is not None)
    check_layers(n_layers, first)
    freqs = first.get("rope.freqs")
    return MetaSizes(
        dim=dim, n_layers=n_layers, head_dim=2 * freqs.shape[0] if freqs and freqs.shape else None,
        query_rows=rows_of("layers.0.attention.wq.weight"), key_rows=rows_of("layers.0.attention.wk.weight"),
        ffn_rows=rows_of("layers.0.feed_forward.w1.weight"),
        vocab_size=first["tok_embeddings.weight"].shape[0] if by_columns else rows_of("tok_embeddings.weight"),
        tied=OUTPUT not in rows, dtype=first["tok_embeddings.weight"].dtype,
    )  # fmt: skip


def _need_dims(tensor: TensorHeader, dims: int) -> None:
    if len(tensor.shape) != dims:
        raise ShapeMismatch(
            f"{tensor.path.name}: {tensor.name!r} has shape {list(tensor.shape)}; {dims} dimensions are needed.",
            "The checkpoint is damaged or of another architecture.",
        )


def _meta_sources(
    config: ModelConfig, ranks: list[Tensors], rows: Mapping[str, Row]
) -> dict[str, TensorSource]:
    sources: dict[str, TensorSource] = {}
    wanted = [tensor for tensor in expected_tensors(config) if tensor.meta is not None]
    check_complete({tensor.meta for tensor in wanted if tensor.meta}, _kept(rows), ranks[0])
    for expected in wanted:
        parts = tuple(rank[expected.meta or ""] for rank in ranks)
        sources[expected.huggingface] = _joined(expected, parts, config)
    return sources


def _kept(rows: Mapping[str, Row]) -> set[str]:
    return {name for name, row in rows.items() if row.join is not Join.DROPPED}


def _joined(expected: Expected, parts: tuple[TensorHeader, ...], config: ModelConfig) -> TensorSource:
    dim = _join_dim(expected, parts)
    shape = parts[0].shape if dim is None else _sum_shapes(parts, dim)
    if shape != expected.shape or len({part.dtype for part in parts}) != 1:
        found = " + ".join(f"{list(part.shape)} {part.dtype}" for part in parts)
        raise ShapeMismatch(
            f"{parts[0].name!r} is {found} over {len(parts)} ranks; needed is {list(expected.shape)} in one dtype.",
            "A file is damaged, missing or of another model: fetch the checkpoint again.",
        )
    return TensorSource(
        expected.huggingface, parts[0].dtype, shape, parts, dim, rotary_heads(expected.row, config)
    )  # fmt: skip


def _join_dim(expected: Expected, parts: tuple[TensorHeader, ...]) -> int | None:
    match expected.row.join:
        case Join.ROWS:
            return 0
        case Join.COLUMNS:
            return 1
        case Join.EMBEDDING:
            return 0 if parts[0].shape[-1] == expected.shape[1] else 1
        case _:
            return None


def _sum_shapes(parts: tuple[TensorHeader, ...], dim: int) -> Shape:
    others = {part.shape[:dim] + part.shape[dim + 1 :] for part in parts}
    if len(others) != 1:
        return ()
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return tuple(shape)
