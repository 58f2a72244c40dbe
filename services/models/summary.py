"""Summary of a model folder, from the headers of its files."""

import os
import stat
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

from services.adapters.adapter import Adapter, is_adapter, read_adapter
from services.architectures.checkpoint import Checkpoint
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.json_vocabulary import read_json_vocabulary
from services.architectures.original_layout import original_folder
from services.architectures.vocabulary import Vocabulary, read_vocabulary
from services.errors import GraftwerkError, UnsupportedFormat
from services.files.gguf_header import GgufArray, GgufHeader, read_gguf_header
from services.files.tensors import DTYPE_NAMES
from services.kinds.model_summary import FileSummary, ModelKind, ModelSummary, TokenizerSummary
from services.models.known_artifacts import KNOWN_ADAPTERS, KNOWN_BASES, KNOWN_TOKENIZERS
from services.models.manifest import Manifest, read_manifest

GGUF_SIZES = (
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count",
)  # fmt: skip
"""Keys of a GGUF file's metadata that the summary shows, below the name of the architecture."""


HIDDEN_STATE_READERS = frozenset((
    "q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj",
))  # fmt: skip
"""Modules whose input is the hidden state: the width of their pairs is the model's."""


def kind_of_folder(folder: Path) -> ModelKind:
    """Returns the kind of model in a folder, from its files; "unknown" if nothing is recognized.

    Raises:
        UnsupportedFormat: the folder holds several checkpoints.
    """
    if is_adapter(folder):
        return "adapter"
    if original_folder(folder) is not None:
        return "original"
    if (folder / "config.json").is_file():
        return "huggingface"
    if any(folder.glob("*.gguf")):
        return "gguf"
    if any(folder.glob("*.model")) or (folder / "tokenizer.json").is_file():
        return "tokenizer"
    return "unknown"


def folder_bytes(folder: Path) -> int:
    """Returns the bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def describe_folder(folder: Path, name: str) -> ModelSummary:
    """Returns a folder's summary; `problems` lists its faults, which never raise."""
    files = list(_file_summaries(folder))
    found: dict[str, Any] = {"name": name, "kind": "unknown", "files": files}
    found["size_bytes"] = sum(file.size_bytes for file in files)
    try:
        manifest = read_manifest(folder)
        if manifest is not None:
            found |= _of_manifest(manifest)
        found["kind"] = kind_of_folder(folder)
        of_kind = _of_kind(folder, name, found["kind"])
        found |= of_kind
        found["warnings"] = [
            *(manifest.warnings if manifest else []),
            *of_kind.get("warnings", []),
            *_needs(manifest),
        ]
        found["known_as"] = _known_as(found["kind"], manifest)
    except GraftwerkError as error:
        found["problems"] = [f"{error.message} {error.hint}".strip()]
    except OSError as error:
        found["problems"] = [
            f"{_shown(Path(Path(error.filename or folder).name))} cannot be read: {error.strerror}."
        ]
    return ModelSummary(**found)


def _file_summaries(folder: Path) -> Iterator[FileSummary]:
    """Yields the files of a folder in the order of their paths, without those that are deleted meanwhile."""
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    for path in sorted(paths):
        try:
            status = path.stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield FileSummary(path=_shown(path.relative_to(folder)), size_bytes=status.st_size)


def _shown(path: Path) -> str:
    r"""Returns a path for people and JSON: bytes that are not UTF-8 as `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _of_manifest(manifest: Manifest) -> dict[str, Any]:
    lineage = manifest.model_dump(
        mode="json", include={"operation", "options", "inputs", "job_id", "versions"}
    )
    return {
        "created_at": manifest.created_at.astimezone(UTC), "digest": manifest.digest, "lineage": lineage,
        "warnings": manifest.warnings,
    }  # fmt: skip


def _of_kind(folder: Path, name: str, kind: ModelKind) -> dict[str, Any]:
    match kind:
        case "adapter":
            return _of_adapter(read_adapter(folder, name, experts=True))
        case "original" | "huggingface":
            return _of_checkpoint(read_checkpoint(folder, dequantized=True))
        case "tokenizer":
            path = next(iter(sorted(folder.glob("*.model"))), None)
            vocabulary = read_vocabulary(path) if path else read_json_vocabulary(folder / "tokenizer.json")
            return {"tokenizer": _tokenizer(vocabulary), "vocabulary_size": vocabulary.size}
        case "gguf":
            return _of_gguf(read_gguf_header(next(iter(sorted(folder.glob("*.gguf"))))))
        case "unknown":
            raise UnsupportedFormat(
                "It is neither an original LLaMA checkpoint (consolidated.NN.pth), a Hugging Face model (config.json), "
                "an adapter (adapter_config.json), a GGUF file (*.gguf) nor a tokenizer (tokenizer.model, tokenizer.json).",
                "Add the files that are missing.",
            )


def _of_gguf(header: GgufHeader) -> dict[str, Any]:
    sizes: dict[str, int] = {}
    for tensor in header.tensors.values():
        sizes[tensor.encoding] = sizes.get(tensor.encoding, 0) + tensor.size_bytes
    encodings = sorted(sizes, key=lambda encoding: -sizes[encoding])
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return {
        "parameters": sum(tensor.elements for tensor in header.tensors.values()),
        "dtypes": [DTYPE_NAMES.get(encoding, encoding.lower()) for encoding in encodings],
        "vocabulary_size": tokens.length if isinstance(tokens, GgufArray) else None,
        "architecture": {
            "name": header.architecture, "file_type": header.metadata.get("general.file_type"),
            "tensors": len(header.tensors),
            **{key: value for key in GGUF_SIZES if (value := header.of_architecture(key)) is not None},
        },
    }  # fmt: skip


def _of_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    return {
        "parameters": checkpoint.parameters, "dtypes": [DTYPE_NAMES[dtype] for dtype in checkpoint.dtypes],
        "vocabulary_size": config.vocab_size, "tokenizer": _tokenizer(checkpoint.vocabulary),
        "ranks": checkpoint.ranks if checkpoint.layout == "meta" else None,
        "architecture": {
            key: getattr(config, key)
            for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                        "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta", "rms_norm_eps",
                        "tie_word_embeddings")
        },
    }  # fmt: skip


def _of_adapter(adapter: Adapter) -> dict[str, Any]:
    headers = list(adapter.headers)
    config = adapter.config
    return {
        "parameters": sum(header.elements for header in headers),
        "dtypes": sorted({DTYPE_NAMES[header.dtype] for header in headers}),
        "vocabulary_size": adapter.vocabulary_rows, "tokenizer": _tokenizer(adapter.vocabulary),
        "adapter": {
            "type": config["peft_type"], "r": config.get("r"), "lora_alpha": config.get("lora_alpha"),
            "target_modules": sorted({_module(tensor) for tensor in (*adapter.pairs, *adapter.layers)} | {p for pack in adapter.packs.values() for p in pack.parameters}),
            "hidden_size": _hidden_size(adapter), "replaces": sorted(adapter.replaced), "tensors": adapter.tensor_count,
            "base_model_name_or_path": config.get("base_model_name_or_path"),
        },
        "warnings": _served_unmerged(adapter),
    }  # fmt: skip


def _hidden_size(adapter: Adapter) -> int | None:
    """Returns the width of the base that an adapter was trained on, by its LoRA pairs; None if they do not show it."""
    widths = {
        pair.shape[1] for tensor, pair in adapter.pairs.items() if _module(tensor) in HIDDEN_STATE_READERS
    }
    return widths.pop() if len(widths) == 1 else None


def _module(tensor: str) -> str:
    return tensor.rsplit(".", 2)[-2]


def _served_unmerged(adapter: Adapter) -> list[str]:
    """Returns a warning if the adapter cannot be served unmerged: vLLM accepts LoRA pairs alone.

    Source: vllm-project/vllm, vllm/lora/peft_helper.py, PEFTHelper._validate_features.
    """
    whole = sorted({_module(tensor) for tensor in (*adapter.replaced, *adapter.rows)})
    kind = "DoRA" if adapter.config.get("use_dora") else adapter.config["peft_type"]
    what = (
        f"holds {', '.join(whole)} in addition to its LoRA pairs (modules_to_save)"
        if whole
        else f"is of type {kind}"
    )
    if not whole and not adapter.layers:
        return []
    return [f"the adapter {what}: vLLM refuses it unmerged, merge it into its base first"]


def _tokenizer(vocabulary: Vocabulary | None) -> TokenizerSummary | None:
    if vocabulary is None:
        return None
    known = KNOWN_TOKENIZERS.get(vocabulary.sha256)
    return TokenizerSummary(
        kind=vocabulary.kind, size=vocabulary.size, sha256=vocabulary.sha256, known_as=known
    )


def _needs(manifest: Manifest | None) -> list[str]:
    """Returns the base that a published adapter is merged into, as a warning."""
    for digest in manifest.files.values() if manifest else ():
        known = KNOWN_ADAPTERS.get(digest)
        if known is not None:
            if known.before:
                return [f"{known.name} is merged into {known.base}, after {known.before}"]
            return [f"{known.name} is merged into {known.base}"]
    return []


def _known_as(kind: ModelKind, manifest: Manifest | None) -> str | None:
    digests = list(manifest.files.values()) if manifest else []
    if kind == "adapter":
        return next((KNOWN_ADAPTERS[digest].name for digest in digests if digest in KNOWN_ADAPTERS), None)
    return next((KNOWN_BASES[digest] for digest in digests if digest in KNOWN_BASES), None)
