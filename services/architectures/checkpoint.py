"""A checkpoint folder of either layout, described as one list of Hugging Face tensors and their parts.

An original checkpoint's tensor has one part a rank; a Hugging Face checkpoint's has one part. Whoever reads
on does not know which it was: one rank is the special case of many.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from services.architectures.config import (
    MetaSizes,
    ModelConfig,
    params_to_config,
    read_config,
    read_json,
    read_params,
)
from services.architectures.key_map import (
    BY_HUGGINGFACE,
    BY_META,
    Expected,
    Join,
    Rotary,
    Row,
    Shape,
    expected_tensors,
    kind_of,
)
from services.architectures.vocabulary import Vocabulary, read_vocabulary
from services.errors import (
    ConfigMismatch,
    IncompleteCheckpoint,
    ShapeMismatch,
    UnknownTensor,
    UnsupportedFormat,
    VocabularyMismatch,
)
from services.files.safetensors_header import read_safetensors_header
from services.files.tensors import FLOAT_DTYPES, TensorHeader
from services.files.torch_zip import read_torch_header

RANK_FILE = re.compile(r"consolidated\.([0-9]{2,4})\.pth")
TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip

EMBEDDINGS, OUTPUT = "tok_embeddings.weight", "output.weight"

Tensors = dict[str, TensorHeader]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One tensor under Hugging Face's name: `parts` joined on `join_dim` (None: all parts are equal).

    `rotary_heads` is the head count by which its rows are un-interleaved after joining, 0 for none.
    """

    name: str
    dtype: str
    shape: Shape
    parts: tuple[TensorHeader, ...]
    join_dim: int | None = None
    rotary_heads: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the joined tensor."""
        return replace(self.parts[0], shape=self.shape).size_bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A base model on disk: configuration, tensors in Hugging Face's order, tokenizer, and the files read."""

    folder: Path
    layout: Literal["meta", "huggingface"]
    config: ModelConfig
    tensors: Mapping[str, TensorSource]
    dropped: tuple[str, ...]
    ranks: int
    tokenizer_folder: Path
    vocabulary: Vocabulary | None
    weight_files: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    @property
    def stored(self) -> dict[str, tuple[str, Shape]]:
        """Dtype and shape of each tensor."""
        return {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that occur, most bytes first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
        return tuple(sorted(sizes, key=lambda dtype: -sizes[dtype]))


def original_folder(folder: Path) -> Path | None:
    """Where the `consolidated.*.pth` lie: the folder itself or the only one below it that has them.

    A Hugging Face folder may carry the original in a folder below (Llama 3's do): it stays a Hugging Face folder.

    Raises:
        UnsupportedFormat: several folders below have them.
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
            f"{folder.name} holds several checkpoints ({names}), one is needed",
            f"Import {folder.name}/{inner[0].name}.",
        )
    return inner[0] if inner else None


def read_checkpoint(folder: Path, *, instruct: bool = False) -> Checkpoint:
    """Describes a base model of either layout from its headers; no tensor is read.

    Raises:
        IncompleteCheckpoint, UnknownTensor, ShapeMismatch, ConfigMismatch, VocabularyMismatch, UnreadableFile,
        UnsafePickle, UnsupportedFormat: what was found, what was needed, what to do.
    """
    original = original_folder(folder)
    if original is not None:
        return _read_original(folder, original, instruct=instruct)
    return _read_huggingface(folder)


# ---- original -----------------------------------------------------------------------------------------


def _read_original(folder: Path, weights: Path, *, instruct: bool) -> Checkpoint:
    files = _rank_files(weights)
    ranks = [_floats_only(read_torch_header(path)) for path in files]
    if not (weights / "params.json").is_file():
        raise IncompleteCheckpoint(
            f"{weights.name} has {len(files)} consolidated.*.pth and no params.json",
            "Add the original params.json.",
        )
    tokenizer_folder = _tokenizer_folder(folder, weights)
    vocabulary = _vocabulary(tokenizer_folder)
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
    _check_vocabulary(config, vocabulary, exact=True)
    return Checkpoint(
        folder, "meta", config, tensors, dropped, len(files), tokenizer_folder, vocabulary, tuple(files)
    )  # fmt: skip


def _rank_files(weights: Path) -> list[Path]:
    found = {int(match[1]): path for path in weights.iterdir() if (match := RANK_FILE.fullmatch(path.name))}
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        raise IncompleteCheckpoint(
            f"{weights.name} has consolidated.*.pth for ranks {sorted(found)}, rank {missing[0]} is missing",
            f"Add consolidated.{missing[0]:02d}.pth.",
        )
    return [found[rank] for rank in sorted(found)]


def _floats_only(tensors: Tensors) -> Tensors:
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOAT_DTYPES:
            raise UnsupportedFormat(
                f"{tensor.path.name}: tensor {name!r} has dtype {tensor.dtype}, weights come in "
                f"{', '.join(FLOAT_DTYPES)}",
                "Use unquantised weights.",
            )
    return tensors


def _tokenizer_folder(folder: Path, weights: Path) -> Path:
    """tokenizer.model lies beside the weights, or one level up within the model's folder."""
    return weights if (weights / "tokenizer.model").is_file() else folder


def _vocabulary(folder: Path) -> Vocabulary | None:
    path = folder / "tokenizer.model"
    return read_vocabulary(path) if path.is_file() else None


def _names_of_ranks(files: list[Path], ranks: list[Tensors]) -> list[str]:
    for path, tensors in zip(files, ranks, strict=True):
        odd = sorted(set(tensors) ^ set(ranks[0]))
        if odd:
            raise IncompleteCheckpoint(
                f"{files[0].name} and {path.name} do not hold the same tensors: {odd[0]!r} is in one of them only",
                "The files are of different checkpoints or one is damaged: fetch them again.",
            )
    return list(ranks[0])


def _shared_output(ranks: list[Tensors]) -> bool:
    """Whether the output is another name for the embeddings' own bytes, as tied weights are saved by torch."""
    return all(
        OUTPUT in rank and EMBEDDINGS in rank and replace(rank[OUTPUT], name=EMBEDDINGS) == rank[EMBEDDINGS]
        for rank in ranks
    )


def _meta_row(name: str, ranks: list[Tensors]) -> Row:
    row = BY_META.get(kind_of(name)[0])
    if row is None:
        raise UnknownTensor(
            f"{ranks[0][name].path.name} holds {name!r}, which is no tensor of a LLaMA model",
            "Only LLaMA-family checkpoints can be converted; nothing was dropped or written.",
        )
    return row


def _meta_sizes(ranks: list[Tensors], rows: Mapping[str, Row]) -> MetaSizes:
    first = ranks[0]
    for name in ("norm.weight", "tok_embeddings.weight", "layers.0.attention.wq.weight",
                 "layers.0.attention.wk.weight", "layers.0.feed_forward.w1.weight"):  # fmt: skip
        if name not in first:
            raise IncompleteCheckpoint(f"the checkpoint has no {name}", "Fetch the checkpoint again.")
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
            f"tok_embeddings.weight has {columns} columns over {len(ranks)} ranks, norm.weight has {dim}",
            "A rank's file is missing or of another checkpoint: all consolidated.*.pth are needed.",
        )
    n_layers = 1 + max(layer for name in rows if (layer := kind_of(name)[1]) is not None)
    _check_layers(n_layers, first)
    freqs = first.get("rope.freqs")
    return MetaSizes(
        dim=dim, n_layers=n_layers, head_dim=2 * freqs.shape[0] if freqs and freqs.shape else None,
        query_rows=rows_of("layers.0.attention.wq.weight"), key_rows=rows_of("layers.0.attention.wk.weight"),
        ffn_rows=rows_of("layers.0.feed_forward.w1.weight"),
        vocab_size=first["tok_embeddings.weight"].shape[0] if by_columns else rows_of("tok_embeddings.weight"),
        tied=OUTPUT not in rows, dtype=first["tok_embeddings.weight"].dtype,
    )  # fmt: skip


def _check_layers(layers: int, tensors: Tensors) -> None:
    """Before the names of all layers are listed: a layer has tensors, so there are never more layers than tensors."""
    if layers > len(tensors):
        raise IncompleteCheckpoint(
            f"a model of {layers} layers was announced, the files hold {len(tensors)} tensors",
            "Fetch the checkpoint again; all its files are needed.",
        )


def _need_dims(tensor: TensorHeader, dims: int) -> None:
    if len(tensor.shape) != dims:
        raise ShapeMismatch(
            f"{tensor.path.name}: {tensor.name!r} has shape {list(tensor.shape)}, {dims} dimensions are needed",
            "The checkpoint is damaged or of another architecture.",
        )


def _meta_sources(
    config: ModelConfig, ranks: list[Tensors], rows: Mapping[str, Row]
) -> dict[str, TensorSource]:
    sources: dict[str, TensorSource] = {}
    wanted = [tensor for tensor in expected_tensors(config) if tensor.meta is not None]
    _check_complete({tensor.meta for tensor in wanted if tensor.meta}, _kept(rows), ranks[0])
    for expected in wanted:
        parts = tuple(rank[expected.meta or ""] for rank in ranks)
        sources[expected.huggingface] = _joined(expected, parts, config)
    return sources


def _kept(rows: Mapping[str, Row]) -> set[str]:
    return {name for name, row in rows.items() if row.join is not Join.DROPPED}


def _check_complete(wanted: set[str], found: set[str], where: Tensors) -> None:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing:
        raise IncompleteCheckpoint(
            f"{len(missing)} of {len(wanted)} tensors are missing, the first is {missing[0]!r}",
            "Fetch the checkpoint again; all its files are needed.",
        )
    if extra:
        raise UnknownTensor(
            f"{where[extra[0]].path.name} holds {extra[0]!r}, which a model of this configuration does not have",
            "The checkpoint and its configuration do not belong together.",
        )


def _joined(expected: Expected, parts: tuple[TensorHeader, ...], config: ModelConfig) -> TensorSource:
    dim = _join_dim(expected, parts)
    shape = parts[0].shape if dim is None else _sum_shapes(parts, dim)
    if shape != expected.shape or len({part.dtype for part in parts}) != 1:
        found = " + ".join(f"{list(part.shape)} {part.dtype}" for part in parts)
        raise ShapeMismatch(
            f"{parts[0].name!r} is {found} over {len(parts)} ranks, needed is {list(expected.shape)} in one dtype",
            "A file is damaged, missing or of another model: fetch the checkpoint again.",
        )
    return TensorSource(
        expected.huggingface, parts[0].dtype, shape, parts, dim, rotary_heads(expected.row, config)
    )  # fmt: skip


def rotary_heads(row: Row, config: ModelConfig) -> int:
    """By how many heads a kind of tensor is permuted between the layouts; 0 for none."""
    by_rotary = {
        Rotary.NO: 0,
        Rotary.QUERY: config.num_attention_heads,
        Rotary.KEY: config.num_key_value_heads,
    }
    return by_rotary[row.rotary]


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


# ---- Hugging Face -------------------------------------------------------------------------------------


def _read_huggingface(folder: Path) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise IncompleteCheckpoint(
            f"{folder.name} has neither consolidated.*.pth nor config.json",
            "A base model is an original LLaMA checkpoint or a Hugging Face folder.",
        )
    found = _floats_only(read_weights(folder))
    if not found:
        raise IncompleteCheckpoint(
            f"the weights of {folder.name} hold no tensors",
            "Fetch the model again; all its files are needed.",
        )
    dtype = max(found.values(), key=lambda tensor: tensor.size_bytes).dtype
    config = read_config(folder / "config.json", dtype)
    dropped = tuple(
        n for n in found if (row := BY_HUGGINGFACE.get(kind_of(n)[0])) and row.join is Join.DROPPED
    )
    kept = {name: tensor for name, tensor in found.items() if name not in dropped}
    for name, tensor in kept.items():
        if kind_of(name)[0] not in BY_HUGGINGFACE:
            raise UnknownTensor(
                f"{tensor.path.name} holds {name!r}, which is no tensor of a LLaMA model",
                "Only LLaMA-family models can be read; nothing was dropped or written.",
            )
    _check_layers(config.num_hidden_layers, kept)
    wanted = expected_tensors(config)
    if config.tie_word_embeddings and "lm_head.weight" in kept:
        raise ConfigMismatch(
            "config.json says tie_word_embeddings = true and the weights hold a lm_head.weight of their own",
            "Set tie_word_embeddings to false if the two differ, or leave lm_head.weight out of the files.",
        )
    _check_complete({tensor.huggingface for tensor in wanted}, set(kept), kept)
    sources = {e.huggingface: _whole(e, kept[e.huggingface], config) for e in wanted}
    vocabulary = _vocabulary(folder)
    _check_vocabulary(config, vocabulary, exact=False)
    files = tuple(dict.fromkeys(tensor.path for tensor in found.values()))
    return Checkpoint(folder, "huggingface", config, sources, dropped, 1, folder, vocabulary, files)


def _whole(expected: Expected, part: TensorHeader, config: ModelConfig) -> TensorSource:
    if part.shape != expected.shape:
        raise ShapeMismatch(
            f"{part.path.name}: {part.name!r} has shape {list(part.shape)}, config.json needs {list(expected.shape)}"
            f" (vocab_size {config.vocab_size}, hidden_size {config.hidden_size})",
            "Use the config.json that belongs to these weights.",
        )
    return TensorSource(expected.huggingface, part.dtype, part.shape, (part,))


def read_weights(folder: Path) -> Tensors:
    """The tensors of a Hugging Face folder, single or sharded, `.safetensors` before `.bin`.

    Raises:
        IncompleteCheckpoint: no weights, or a shard of the index is missing.
        ConfigMismatch: index and shards disagree.
    """
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, single = folder / f"{stem}.{ending}.index.json", folder / f"{stem}.{ending}"
        if index.is_file():
            return _read_sharded(index)
        if single.is_file():
            return read_tensor_file(single)
    raise IncompleteCheckpoint(
        f"{folder.name} has a config.json and no weights (model.safetensors or pytorch_model.bin, single or sharded)",
        "Add the weight files.",
    )


def read_tensor_file(path: Path) -> Tensors:
    """The tensors of one file, by its ending."""
    return read_safetensors_header(path) if path.suffix == ".safetensors" else read_torch_header(path)


def _read_sharded(index: Path) -> Tensors:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise IncompleteCheckpoint(f"{index.name} has no weight_map", "Fetch the index again.")
    tensors: Tensors = {}
    for shard in sorted(set(where.values())):
        tensors.update(_read_shard(index, shard, {name for name, file in where.items() if file == shard}))
    return tensors


def _read_shard(index: Path, shard: str, names: Iterable[str]) -> Tensors:
    path = index.parent / shard
    if Path(shard).name != shard or not path.is_file():
        raise IncompleteCheckpoint(
            f"{index.name} names {shard}, which is not there",
            f"Add {shard}: all shards of the index are needed.",
        )
    found = read_tensor_file(path)
    odd = sorted(set(names) ^ set(found))
    if odd:
        raise ConfigMismatch(
            f"{index.name} and {shard} disagree on {len(odd)} tensors, the first is {odd[0]!r}",
            "Index and shards are of different downloads: fetch both again.",
        )
    return found


def _check_vocabulary(config: ModelConfig, vocabulary: Vocabulary | None, *, exact: bool) -> None:
    """Rows may exceed the pieces (padding), except in an original checkpoint; never the other way."""
    if vocabulary is None:
        return
    if vocabulary.size > config.vocab_size or (exact and vocabulary.size != config.vocab_size):
        raise VocabularyMismatch(
            f"tokenizer.model knows {vocabulary.size} tokens, the embeddings have {config.vocab_size} rows",
            "Use the tokenizer.model that belongs to these weights.",
        )
