"""The manifest: what a model was made from, and one digest for its tensors."""

import hashlib
import json
from pathlib import Path

import pytest

from services.errors import UnreadableFile
from services.models.manifest import (
    InputEntry,
    TensorEntry,
    new_manifest,
    read_manifest,
    tensor_digest,
    write_manifest,
)
from services.models.summary import describe_folder

A = TensorEntry(dtype="F16", shape=[2, 3], sha256="a" * 64)
B = TensorEntry(dtype="F32", shape=[7], sha256="b" * 64)


def test_the_digest_is_that_of_the_lines_written_out() -> None:
    lines = f"a.weight F16 2x3 {'a' * 64}\nb.weight F32 7 {'b' * 64}\n"
    assert tensor_digest({"b.weight": B, "a.weight": A}) == hashlib.sha256(lines.encode()).hexdigest()


def test_the_digest_does_not_depend_on_order_but_on_everything_else() -> None:
    whole = tensor_digest({"a": A, "b": B})
    assert tensor_digest({"b": B, "a": A}) == whole
    others = [
        {"a": B, "b": A},
        {"a": A},
        {"a": A, "c": B},
        {"a": A.model_copy(update={"dtype": "BF16"}), "b": B},
        {"a": A.model_copy(update={"shape": [3, 2]}), "b": B},
        {"a": A.model_copy(update={"sha256": "c" * 64}), "b": B},
    ]
    digests = [tensor_digest(tensors) for tensors in others]
    assert len({whole, *digests}) == 7


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = new_manifest(
        kind="huggingface",
        operation="merge",
        inputs=[
            InputEntry(role="base", name="羊驼", digest="d" * 64),
            InputEntry(role="adapter", name="x", scale=0.5),
        ],
        tensors={"a": A, "b": B},
        options={"rounding": "once"},
        warnings=["3 rows are padding"],
        job_id="j1",
    )
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    written = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert written["format"] == "graftwerk/1"
    assert written["inputs"][1] == {"role": "adapter", "name": "x", "digest": None, "scale": 0.5}
    assert written["digest"] == tensor_digest({"a": A, "b": B})
    assert written["created_at"].endswith("Z")


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("{'path': 'incoming/llama'}", "incoming/llama"),
        ("{'zip': 'incoming/x.zip'}", "incoming/x.zip"),
        ("{'path': \"incoming/it's\"}", "incoming/it's"),
        ("{'path': ", "{'path': "),
        ("{'other': 1}", "{'other': 1}"),
        ("incoming/{a}", "incoming/{a}"),
    ],
)
def test_a_manifest_of_0_1_0_shows_the_source_of_an_import_as_its_path(
    tmp_path: Path, written: str, shown: str
) -> None:
    content = {
        "kind": "tokenizer", "operation": "import", "created_at": "2026-01-01T00:00:00+00:00",
        "inputs": [{"role": "source", "name": written}], "versions": {"graftwerk": "0.1.0"},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert (manifest.inputs[0].name, manifest.versions) == (shown, {"graftwerk": "0.1.0"})
    assert '"created_at":"2026-01-01T00:00:00Z"' in describe_folder(tmp_path, "old").model_dump_json()


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"kind": 7}',
        '{"kind": "adapter", "operation": "import", "created_at": "yesterday"}',
    ],
)
def test_a_damaged_manifest_is_refused_with_its_path(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UnreadableFile, match=r"model/manifest\.json is damaged"):
        read_manifest(folder)


def test_an_imported_model_has_no_digest_of_tensors() -> None:
    manifest = new_manifest(
        kind="adapter", operation="import", inputs=[], tensors={}, files={"a.bin": "e" * 64}
    )
    assert manifest.digest is None
    assert manifest.files == {"a.bin": "e" * 64}
