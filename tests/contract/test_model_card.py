"""Model cards of made models, read by `huggingface_hub` and by people who have the folder alone."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from services.kinds import ANY_REQUEST
from services.kinds.extend_tokenizer import ExtendTokenizerRequest
from services.models.manifest import InputEntry, Manifest, read_manifest, write_manifest
from services.models.model_card import model_card
from services.models.store import ModelStore
from tests.contract.resume_child import make
from tests.job_context import job_context
from tests.tokenizer_sets import OURS
from worker.models import extend_tokenizer

MERGE = {"kind": "merge", "base": "base", "adapters": ["a", {"name": "b", "scale": 0.5}]}
CONVERT = {"kind": "convert", "source": "base"}
CARD = "---\nlicense: {}\n---\n# Base\n"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def made(root: Path, request: dict[str, Any], **more: Any) -> Path:
    make(ANY_REQUEST.validate_python({**request, "target": "made", **more}), job_context(root))
    return root / "made"


def imported(root: Path, name: str, source: str) -> None:
    entry = InputEntry(role="source", name=source)
    manifest = Manifest(kind="huggingface", created_at=NOW, operation="import", inputs=[entry])
    write_manifest(root / name, manifest)


def matter_of(folder: Path) -> dict[str, Any]:
    """The front matter, by PyYAML; the Hub's own reader finds the same."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    assert ModelCard.load(folder / "README.md").data.to_dict() == found
    return found


# ---- front matter -------------------------------------------------------------------------------------


def test_a_merge_names_its_inputs_by_their_ids_on_the_hub(root: Path) -> None:
    imported(root, "base", "meta-llama/Llama-2-7b-hf@main")
    imported(root, "a", "incoming/a")
    (root / "base" / "README.md").write_text(CARD.format("llama2"))
    assert matter_of(made(root, MERGE)) == {
        "base_model": ["meta-llama/Llama-2-7b-hf", "a", "b"], "base_model_relation": "merge", "license": "llama2",
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["graftwerk", "merge", "lora"],
    }  # fmt: skip


def test_a_gguf_file_of_a_conversion_names_the_model_on_the_hub(root: Path) -> None:
    imported(root, "base", "org/name")
    made(root, CONVERT, target="converted")
    folder = made(root, {"kind": "convert", "source": "converted", "output_format": "gguf"})
    assert matter_of(folder) == {
        "base_model": ["org/name"], "base_model_relation": "quantized", "library_name": "gguf",
        "pipeline_tag": "text-generation", "tags": ["graftwerk", "convert", "gguf"],
    }  # fmt: skip


def test_a_change_of_layout_has_no_relation_and_metas_layout_no_library(root: Path) -> None:
    matter = matter_of(made(root, CONVERT, output_format="meta"))
    assert matter == {
        "base_model": ["base"],
        "pipeline_tag": "text-generation",
        "tags": ["graftwerk", "convert"],
    }


def test_an_adapter_made_of_adapters_names_the_base_that_they_were_trained_on(root: Path) -> None:
    for name, base in (("a", "org/trained"), ("b", "/home/me/llama")):
        path = root / name / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))
    entries = [InputEntry(role="adapter", name=name) for name in ("a", "b")]
    manifest = Manifest(kind="adapter", created_at=NOW, operation="combine", inputs=entries)
    (root / "README.md").write_text(model_card(manifest, ModelStore(root)))
    assert matter_of(root) == {
        "base_model": ["org/trained", "b"], "base_model_relation": "adapter", "library_name": "peft",
        "pipeline_tag": "text-generation", "tags": ["graftwerk", "combine", "adapter", "lora"],
    }  # fmt: skip


def test_an_extended_tokenizer_has_a_card(tmp_path: Path) -> None:
    for name in ("llama", "chinese_sp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(OURS.file(name).read_bytes())
    request = {"kind": "extend-tokenizer", "base": "llama", "addition": "chinese_sp", "target": "words"}
    extend_tokenizer.run(ExtendTokenizerRequest.model_validate(request), job_context(tmp_path))
    folder = tmp_path / "words"
    assert matter_of(folder) == {
        "base_model": ["llama", "chinese_sp"], "library_name": "transformers",
        "tags": ["graftwerk", "extend-tokenizer", "tokenizer"],
    }  # fmt: skip
    assert run_check(folder) == "equal"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        ({"base/README.md": CARD.format("mit")}, {"license": "mit"}),
        ({"base/README.md": CARD.format("[mit]"), "a/README.md": CARD.format("mit")}, {"license": "mit"}),
        (
            {"base/README.md": CARD.format("mit"), "b/README.md": CARD.format("apache-2.0")},
            {"license": "other", "license_name": "several"},
        ),
        ({"base/LICENSE": "\n   Apache License\n   Version 2.0, January 2004\n"}, {"license": "apache-2.0"}),
        ({"base/LICENSE.txt": "LLAMA 2 COMMUNITY LICENSE AGREEMENT\n"}, {"license": "llama2"}),
        ({"base/LICENSE": "All rights reserved."}, {"license": "other", "license_name": "unrecognized"}),
        (
            {"base/README.md": CARD.format("other\nlicense_name: own\nlicense_link: https://example.org/l")},
            {"license": "other", "license_name": "own", "license_link": "https://example.org/l"},
        ),
        ({"base/README.md": CARD.format("other\nlicense_link: LICENSE")}, {"license": "other"}),
        ({"base/README.md": "---\n{[\n---\n", "base/LICENSE": "MIT License"}, {"license": "mit"}),
        ({"base/README.md": b"\xff\xfe"}, {}),
    ],
    ids=str,
)
def test_the_licence_is_that_of_the_inputs(
    root: Path, files: dict[str, Any], expected: dict[str, str]
) -> None:
    for name, content in files.items():
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    matter = matter_of(made(root, MERGE, verify=False))
    assert {key: value for key, value in matter.items() if key.startswith("license")} == expected


# ---- text ---------------------------------------------------------------------------------------------


def test_the_card_has_order_scales_digests_rounding_and_the_figures_of_the_verification(root: Path) -> None:
    folder = made(root, MERGE)
    text = (folder / "README.md").read_text(encoding="utf-8")
    manifest = read_manifest(folder)
    assert manifest is not None
    first, second = (entry.digest for entry in manifest.inputs[1:])
    assert f"| 2 | adapter | `a` | 1 | `{first}` |\n| 3 | adapter | `b` | 0.5 | `{second}` |" in text
    checks = manifest.result["verification"]
    for line in (
        "# `base` with `a`, `b` merged in", "| rounding | `per_adapter` |", "| verification | passed |",
        f"| digest of all tensors | `{manifest.digest}` |", f"| rows recomputed in float64 | `{checks['rows_recomputed']}` |",
        f"| largest difference of a logit | {checks['logits']['largest_difference']:.4g} |",
        f"| dtypes | float16 ({len(manifest.tensors)} tensors) |", "from_pretrained(folder",
    ):  # fmt: skip
        assert line in text


def test_the_bases_own_card_stays_with_the_base(root: Path) -> None:
    (root / "base" / "README.md").write_text("Mine")
    assert "Mine" not in (made(root, MERGE) / "README.md").read_text()
    assert (root / "base" / "README.md").read_text() == "Mine"


def test_a_copy_under_another_name_has_the_same_card(root: Path) -> None:
    first = made(root, CONVERT)
    assert "made" not in re.sub("Made by|made with", "", (first / "README.md").read_text())


@pytest.mark.parametrize(
    "name", ["a|b", "`x`", "x\n# Heading", "<script>", "---\nlicense: mit\n---", '": {}', "模型 👍"]
)
def test_a_name_cannot_be_markup(tmp_path: Path, name: str) -> None:
    manifest = Manifest(
        kind="adapter", created_at=NOW, operation="combine", warnings=[name],
        inputs=[InputEntry(role="adapter", name=name)], options={"method": name},
    )  # fmt: skip
    text = model_card(manifest, ModelStore(tmp_path))
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert matter_of(tmp_path) == {
        "base_model": [" ".join(name.split())], "base_model_relation": "adapter", "library_name": "peft",
        "pipeline_tag": "text-generation", "tags": ["graftwerk", "combine", "adapter"],
    }  # fmt: skip
    body = text.split("\n---\n", 1)[1]
    assert "\n# Heading" not in body and "<script>" not in body
    rows = [line for line in body.splitlines() if line.startswith("| 1 |")]
    assert len(rows) == 1 and rows[0].count("|") == 6


# ---- the receipt --------------------------------------------------------------------------------------


def run_check(folder: Path) -> str:
    """Output of the card's own script in the folder."""
    text = (folder / "README.md").read_text(encoding="utf-8").split("## Check the receipt")[1]
    script = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


@pytest.mark.parametrize("output_format", ["huggingface", "gguf"])
def test_the_receipt_is_checked_by_the_cards_script(root: Path, output_format: str) -> None:
    folder = made(root, MERGE, output_format=output_format, verify=False)
    assert run_check(folder) == "equal"
    weights = next(path for path in folder.iterdir() if path.suffix in (".gguf", ".safetensors"))
    content = bytearray(weights.read_bytes())
    content[-70] ^= 1
    weights.write_bytes(content)
    name = "Modelfile" if output_format == "gguf" else "config.json"
    (folder / name).write_text((folder / name).read_text() + " ")
    different = run_check(folder)
    assert name in different and different.count("'") == 4


def test_the_card_is_a_file_of_the_manifest(root: Path) -> None:
    folder = made(root, MERGE, verify=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "README.md" in manifest["files"]
    assert list(manifest["files"]) == sorted(manifest["files"])
