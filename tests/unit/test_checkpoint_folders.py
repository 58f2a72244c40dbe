"""Configurations, indexes and folders of checkpoints that are refused or described."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.architectures.checkpoint_reader import read_checkpoint
from services.errors import (
    ConfigMismatch,
    GraftwerkError,
    IncompleteCheckpoint,
    ShapeMismatch,
    UnknownTensor,
    UnreadableFile,
    UnsupportedFormat,
)
from services.files.json_file import read_json
from services.models.summary import describe_folder
from tests.header_files import SHAPES, written
from tests.reference.tensor_files import (
    llama_config,
    llama_shapes,
    safetensors_file,
    write_adapter,
    write_base,
)
from tests.reference.torch_files import torch_file


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 50_000, b"{'a': 1}", b"9" * 5000],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnreadableFile, match=r"config\.json"):
        read_json(written(tmp_path / "config.json", content))


def changed_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**llama_config(), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {key: value}
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "intermediate_size",
                    "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "max_position_embeddings")
        for value in (0, -1, "8", [8], {"a": 1}, True, float("nan"), float("inf"), 10**40)
    ]
    + [{"rope_parameters": {"rope_theta": "x"}}],
)  # fmt: skip
def test_a_number_of_the_config_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = write_base(tmp_path / "base")
    changed_config(folder, **changes)
    with pytest.raises(GraftwerkError) as caught:
        read_checkpoint(folder)
    assert "config.json" in f"{caught.value.message} {caught.value.hint}"


def test_a_thousand_million_layers_are_refused_at_once(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    changed_config(folder, num_hidden_layers=10**9)
    with pytest.raises(
        IncompleteCheckpoint, match="1000000000 layers was announced; the files hold 30 tensors"
    ):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "error", "phrases"),
    [
        ({"hidden_size": 64}, ShapeMismatch, ("[101, 48]", "[101, 64]")),
        ({"vocab_size": 100}, ShapeMismatch, ("[101, 48]", "[100, 48]")),
        ({"num_key_value_heads": 8}, ShapeMismatch, ("[24, 48]", "[48, 48]")),
        ({"num_hidden_layers": 4}, IncompleteCheckpoint, ("9 of 39 tensors", "layers.3")),
        ({"num_hidden_layers": 2}, UnknownTensor, ("layers.2",)),
        ({"tie_word_embeddings": True}, ConfigMismatch, ("tie_word_embeddings", "lm_head.weight")),
        ({"model_type": "mamba"}, UnsupportedFormat, ("'mamba'", "llama, mistral, qwen2")),
        ({"quantization_config": {"bits": 4}}, UnsupportedFormat, ("quantization_config",)),
    ],
)
def test_a_config_of_another_model_is_refused_with_both_values(
    tmp_path: Path, changes: dict[str, Any], error: type[GraftwerkError], phrases: tuple[str, ...]
) -> None:
    folder = write_base(tmp_path / "base")
    changed_config(folder, **changes)
    with pytest.raises(error) as caught:
        read_checkpoint(folder)
    for phrase in phrases:
        assert phrase in caught.value.message


def shard(folder: Path) -> dict[str, Any]:
    """The base's one file as two shards with an index."""
    shapes = dict(llama_shapes())
    names = sorted(shapes)
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(where.values())):
        content = safetensors_file({name: shapes[name] for name in names if where[name] == file})
        (folder / file).write_bytes(content)
    (folder / "model.safetensors").unlink()
    return {"weight_map": where}


@pytest.mark.parametrize(
    ("change", "error", "phrase"),
    [
        (lambda index: index["weight_map"].update({"x": "../../secret.safetensors"}), IncompleteCheckpoint, "secret"),
        (lambda index: index["weight_map"].update({"x": "/etc/passwd"}), IncompleteCheckpoint, "/etc/passwd"),
        (lambda index: index["weight_map"].update({"x": "model-00003-of-00002.safetensors"}), IncompleteCheckpoint,
         "model-00003"),
        (lambda index: index["weight_map"].update({"x": "model-00001-of-00002.safetensors"}), ConfigMismatch, "'x'"),
        (lambda index: index["weight_map"].pop("lm_head.weight"), ConfigMismatch, "lm_head.weight"),
        (lambda index: index["weight_map"].update({"x": 7}), IncompleteCheckpoint, "no weight_map"),
        (lambda index: index.pop("weight_map"), IncompleteCheckpoint, "no weight_map"),
    ],
)  # fmt: skip
def test_an_index_that_disagrees_with_its_shards_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], error: type[GraftwerkError], phrase: str
) -> None:
    folder = write_base(tmp_path / "base")
    index = shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(read_checkpoint(folder).tensors) == 30
    change(index)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error) as caught:
        read_checkpoint(folder)
    assert phrase in caught.value.message


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "model.safetensors").write_bytes(safetensors_file({}))
    with pytest.raises(IncompleteCheckpoint, match="hold no tensors"):
        read_checkpoint(folder)


def test_a_hugging_face_folder_with_the_original_below_stays_one(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(torch_file(SHAPES))
    assert read_checkpoint(folder).layout == "huggingface"
    assert describe_folder(folder, "base").kind == "huggingface"


@pytest.mark.parametrize("kind", ["base", "adapter", "original"])
def test_a_description_says_what_is_wrong_and_never_raises(tmp_path: Path, kind: str) -> None:
    """Every file in turn is cut, emptied and filled with noise."""
    random_ = random.Random(7)
    folder = {
        "base": lambda: write_base(tmp_path / "it"),
        "adapter": lambda: write_adapter(tmp_path / "it", pieces=101),
        "original": lambda: original(tmp_path / "it"),
    }[kind]()
    assert describe_folder(folder, "it").kind == {"base": "huggingface"}.get(kind, kind)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        spoiled = [
            b"",
            content[: len(content) // 2],
            random_.randbytes(300),
            b"{}",
            b"[1]",
            content[:-1] + b"\xff",
        ]
        for damage in spoiled:
            path.write_bytes(damage)
            describe_folder(folder, "it")
        path.write_bytes(content)


def original(folder: Path) -> Path:
    folder.mkdir()
    (folder / "consolidated.00.pth").write_bytes(torch_file(SHAPES))
    (folder / "params.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("layers." + "9" * 5000 + ".weight", UnreadableFile),
        ("layers.999999.attention.wq.weight", UnknownTensor),
        ("a\nb.weight", UnreadableFile),
        ("\ud800", UnreadableFile),
        ("a." * 40, UnreadableFile),
    ],
)
def test_absurd_names_of_tensors_are_refused(tmp_path: Path, name: str, error: type[GraftwerkError]) -> None:
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").write_bytes(safetensors_file({**llama_shapes(), name: (2, 2)}))
    with pytest.raises(error):
        read_checkpoint(base)
