"""Template of a conversation, by the model's lineage."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.models.lineage import template_of_lineage
from services.models.manifest import InputEntry, Manifest, write_manifest
from services.models.store import ModelStore

ALPACA_7B = "0d9b6ed8e4a7d1ae590a16c89a452a488d66ff07e45487972f61c2b6e46e36de"
"""Chinese-Alpaca-7B by `SHA256.md` of ymcui/Chinese-LLaMA-Alpaca."""


def put(
    root: Path, name: str, *inputs: InputEntry, operation: str = "merge", digest: str | None = None
) -> None:
    (root / name).mkdir()
    manifest = Manifest(
        kind="huggingface",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        operation=operation,
        inputs=list(inputs),
        digest=digest,
    )
    write_manifest(root / name, manifest)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("chinese-alpaca-7b", "alpaca"),
        ("Chinese-Alpaca-Plus-13B", "alpaca"),
        ("chinese-alpaca-2-7b", "alpaca-2"),
        ("chinese-alpaca-2-1.3b", "alpaca-2"),
        ("Alpaca2", "alpaca-2"),
        ("alpaca-27b", "alpaca"),
        ("vicuna-7b-v1.1", "vicuna"),
        ("Llama-2-7b-chat-hf", "llama-2"),
        ("llama-7b", None),
        ("chinese-llama-2-7b", None),
    ],
)
def test_a_folder_without_a_manifest_goes_by_its_name(
    tmp_path: Path, name: str, template: str | None
) -> None:
    (tmp_path / name).mkdir()
    assert template_of_lineage(ModelStore(tmp_path), name) == template


def test_a_merged_model_goes_by_the_last_adapter_that_says_something(tmp_path: Path) -> None:
    base = InputEntry(role="base", name="vicuna-7b")
    adapters = [InputEntry(role="adapter", name=name) for name in ("zh-lora", "my-Alpaca-lora", "style")]
    put(tmp_path, "merged", base, *adapters)
    assert template_of_lineage(ModelStore(tmp_path), "merged") == "alpaca"


def test_a_published_adapter_is_known_whatever_it_is_called(tmp_path: Path) -> None:
    put(tmp_path, "merged", InputEntry(role="adapter", name="second", digest=ALPACA_7B))
    assert template_of_lineage(ModelStore(tmp_path), "merged") == "alpaca"


def test_a_model_made_in_several_steps_is_followed_back(tmp_path: Path) -> None:
    put(tmp_path, "first", InputEntry(role="adapter", name="alpaca-lora"), digest="11")
    put(
        tmp_path,
        "second",
        InputEntry(role="source", name="first", digest="11"),
        operation="convert",
        digest="22",
    )
    put(tmp_path, "third", InputEntry(role="base", name="second", digest="22"))
    assert template_of_lineage(ModelStore(tmp_path), "third") == "alpaca"


def test_a_name_that_by_now_is_another_model_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path, "first", InputEntry(role="adapter", name="alpaca-lora"), digest="99")
    put(tmp_path, "second", InputEntry(role="base", name="first", digest="11"))
    assert template_of_lineage(ModelStore(tmp_path), "second") is None


def test_what_was_made_of_itself_by_name_ends_the_search(tmp_path: Path) -> None:
    put(tmp_path, "a", InputEntry(role="base", name="a"))
    assert template_of_lineage(ModelStore(tmp_path), "a") is None


def test_adapters_on_the_fly_come_before_the_model(tmp_path: Path) -> None:
    put(tmp_path, "vicuna-7b")
    (tmp_path / "alpaca-lora").mkdir()
    assert template_of_lineage(ModelStore(tmp_path), "vicuna-7b", ["alpaca-lora"]) == "alpaca"
