"""Dependents of a model: by lineage, by the base that an adapter records, by unfinished jobs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from services.kinds.model_summary import ModelSummary
from services.models.dependents import AdaptersByBase, adapters_of, made_from
from services.models.manifest import InputEntry, Manifest, write_manifest
from tests.api_client import client_of, problem, put_model
from tests.miniature import MINIATURE, unpack_adapters

pytestmark = pytest.mark.disable_socket


def summary(name: str, kind: Any = "huggingface", **more: Any) -> ModelSummary:
    return ModelSummary(name=name, kind=kind, size_bytes=1, **more)


def lineage(operation: str, *inputs: tuple[str, str, str | None]) -> dict[str, Any]:
    entries = [{"role": role, "name": name, "digest": digest} for role, name, digest in inputs]
    return {"operation": operation, "inputs": entries}


BASE = summary("llama", digest="d1")


def test_models_made_from_a_model_are_those_whose_lineage_names_it() -> None:
    others = [
        BASE,
        summary("merged", lineage=lineage("merge", ("base", "llama", "d1"), ("adapter", "zh", "d2"))),
        summary("twice", lineage=lineage("extend-tokenizer", ("base", "llama", None), ("addition", "llama", None))),
        summary("earlier", lineage=lineage("convert", ("source", "llama", "another"))),
        summary("unrelated", lineage=lineage("convert", ("source", "llama-2", "d1"))),
        summary("imported", lineage=lineage("import", ("source", "incoming/llama", None))),
        summary("found"),
    ]  # fmt: skip
    assert [(made.name, made.operation, made.roles) for made in made_from(BASE, others)] == [
        ("merged", "merge", ["base"]),
        ("twice", "extend-tokenizer", ["base", "addition"]),
    ]


@pytest.mark.parametrize(
    ("adapter", "needs"),
    [
        ({"lineage": lineage("extract", ("base", "llama", "d1"), ("model", "chat", "d3"))}, True),
        ({"lineage": lineage("extract", ("base", "llama", "another"))}, False),
        ({"adapter": {"base": {"hub": "org/llama-7b", "model": "llama"}}}, True),
        ({"adapter": {"base": {"hub": "org/llama-7b", "model": None}}}, False),
        ({"adapter": {"base_model_name_or_path": "/data/models/Llama"}}, True),
        ({"adapter": {"base_model_name_or_path": "llama-2"}}, False),
        ({"adapter": {"base_model_name_or_path": None}}, False),
        ({"known_as": "Chinese-LLaMA-Plus-7B"}, True),
        ({"known_as": "Chinese-LLaMA-Plus-13B"}, False),
        ({}, False),
    ],
)
def test_an_adapter_needs_the_base_that_it_records(adapter: dict[str, Any], needs: bool) -> None:
    base = BASE.model_copy(update={"known_as": "LLaMA-7B"})
    zh = summary("zh", "adapter", **adapter)
    assert list(adapters_of(base, [base, zh])) == (["zh"] if needs else [])
    assert AdaptersByBase([zh]).of(base) == (["zh"] if needs else [])


def test_nothing_is_an_adapter_of_an_adapter() -> None:
    zh = summary("zh", "adapter")
    combined = summary("both", "adapter", lineage=lineage("combine", ("adapter", "zh", None)))
    assert list(adapters_of(zh, [zh, combined])) == []
    assert [made.name for made in made_from(zh, [zh, combined])] == ["both"]


def test_the_api_names_models_adapters_and_jobs(tmp_path: Path) -> None:
    shutil.copytree(MINIATURE / "llama", tmp_path / "llama")
    zh, _ = unpack_adapters(tmp_path)
    write_manifest(
        put_model(tmp_path, "made", {"config.json": "{}"}),
        Manifest(
            kind="huggingface", created_at="2026-01-01T00:00:00Z", operation="convert",
            inputs=[InputEntry(role="source", name="llama")],
        ),
    )  # fmt: skip
    recorded = zh / "adapter_config.json"
    config = json.loads(recorded.read_text()) | {"base_model_name_or_path": "org/llama"}
    recorded.write_text(json.dumps(config))
    client = client_of(tmp_path)
    request = {"kind": "convert", "source": "llama", "target": "llama-hf"}
    job_id = client.post("/api/jobs", json=request).get_json()["id"]
    assert client.get("/api/models/llama/dependents").get_json() == {
        "name": "llama",
        "models": [{"name": "made", "kind": "huggingface", "operation": "convert", "roles": ["source"]}],
        "adapters": [zh.name],
        "jobs": [{"id": job_id, "kind": "convert", "status": "queued"}],
    }
    assert client.get("/api/models/llama-hf/dependents").status_code == 404
    client.post(f"/api/jobs/{job_id}/cancel")
    assert client.get("/api/models/llama/dependents").get_json()["jobs"] == []
    problem(client.get("/api/models/absent/dependents"), 404, "model_not_found")
