"""Name, licence and base models in the metadata of GGUF outputs, read by llama.cpp's own package."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gguf

from services.checkpoints.write_hooks import WriteHooks
from services.convert import ConvertOptions, convert
from services.files.gguf_header import read_gguf_header
from services.files.gguf_origin import GgufOrigin
from services.kinds import ANY_REQUEST
from services.models.manifest import InputEntry, Manifest, read_manifest, write_manifest
from tests.contract.resume_child import make
from tests.job_context import job_context

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CARD = "---\nlicense: {}\n---\n# Base\n"
MERGE = {"kind": "merge", "base": "base", "adapters": ["a", "b"]}
CONVERT = {"kind": "convert", "source": "base"}
TYPE = {"general.architecture": "llama", "general.type": "model"}
ENCODING = {"general.file_type", "general.quantization_version"}


def made(root: Path, request: dict[str, Any], target: str = "made", **more: Any) -> Path:
    full = {"output_format": "gguf", **request, "target": target, **more}
    make(ANY_REQUEST.validate_python(full), job_context(root))
    return root / target


def general(folder: Path) -> dict[str, Any]:
    """Everything below `general.` except the encoding."""
    fields = gguf.GGUFReader(folder / "model.gguf").fields
    found = {name: field.contents() for name, field in fields.items() if name.startswith("general.")}
    return {name: value for name, value in found.items() if name not in ENCODING}


def described(folder: Path, source: str, *, operation: str = "import", **more: Any) -> None:
    entry = InputEntry(role="source", name=source)
    write_manifest(
        folder, Manifest(kind="huggingface", created_at=NOW, operation=operation, inputs=[entry], **more)
    )


def test_a_conversion_has_the_sources_name_and_licence_and_its_id_on_the_hub(root: Path) -> None:
    described(root / "base", "meta-llama/Llama-2-7b-hf@main")
    (root / "base" / "README.md").write_text(CARD.format("llama2"))
    assert general(made(root, CONVERT)) == TYPE | {
        "general.name": "base", "general.license": "llama2", "general.base_model.count": 1,
        "general.base_model.0.name": "Llama-2-7b-hf", "general.base_model.0.organization": "meta-llama",
        "general.base_model.0.repo_url": "https://huggingface.co/meta-llama/Llama-2-7b-hf",
    }  # fmt: skip


MERGED = TYPE | {
    "general.name": "base + a + b", "general.base_model.count": 3, "general.base_model.0.name": "base",
    "general.base_model.1.name": "lora", "general.base_model.1.organization": "org",
    "general.base_model.1.repo_url": "https://huggingface.co/org/lora", "general.base_model.2.name": "b",
}  # fmt: skip


def test_a_merge_is_named_by_its_inputs_and_has_no_licence_that_none_of_them_states(root: Path) -> None:
    described(root / "a", "org/lora")
    assert general(made(root, MERGE)) == MERGED


def test_inputs_of_several_licences_have_the_card_s(root: Path) -> None:
    for name, license in (("base", "llama2"), ("a", "mit")):
        (root / name / "README.md").write_text(CARD.format(license))
    found = general(made(root, MERGE))
    assert (found["general.license"], found["general.license.name"]) == ("other", "several")


def test_a_converted_merge_names_the_models_that_it_was_merged_from(root: Path) -> None:
    described(root / "a", "org/lora")
    made(root, MERGE, "merged", output_format="huggingface")
    found = general(made(root, {"kind": "convert", "source": "merged"}))
    assert found == MERGED | {"general.name": "merged"}


def test_a_model_from_a_gguf_file_keeps_the_name_that_the_file_stated(root: Path) -> None:
    described(root / "base", "file", operation="convert", origin={"name": "Little Llama", "license": "mit"})
    found = general(made(root, CONVERT))
    assert (found["general.name"], found["general.base_model.0.name"]) == ("Little Llama", "Little Llama")


def test_the_copy_under_another_name_states_the_same(root: Path) -> None:
    first = made(root, CONVERT)
    second = made(root, CONVERT, "second")
    manifest = read_manifest(second)
    assert manifest is not None
    assert manifest.result["same_as"] == "made"
    assert general(second) == general(first)
    assert "made" not in json.dumps(general(second))


def test_what_utf_8_cannot_hold_of_a_licence_is_a_question_mark(root: Path) -> None:
    (root / "base" / "README.md").write_text(CARD.format(r'"a\ud800b"'))
    folder = made(root, CONVERT)
    assert general(folder)["general.license"] == "a?b"
    assert "\nlicense: a?b\n" in (folder / "README.md").read_text()


def test_nothing_is_left_of_a_killed_run_with_another_header(root: Path) -> None:
    """As if a licence had been taken out of the card between the two runs."""
    hooks = WriteHooks(journal=root / "journal")
    (root / "target").mkdir()
    for text in ("x" * 1000, "x"):
        options = ConvertOptions(output_format="gguf", origin=GgufOrigin({"name": text}))
        convert(root / "base", root / "target", options, hooks)
    (root / "once").mkdir()
    convert(root / "base", root / "once", options)
    assert (root / "target/model.gguf").read_bytes() == (root / "once/model.gguf").read_bytes()
    assert read_gguf_header(root / "target/model.gguf").metadata["general.name"] == "x"
