"""Requests that preflight and the worker refuse in the same words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.errors import (
    GraftwerkError,
)
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.models.store import ModelStore
from services.preflight import preflight
from tests.job_context import job_context
from tests.reference.tensor_files import write_adapter, write_base
from worker.models import convert as convert_job
from worker.models import merge as merge_job

Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A volume with a base of 101 rows and an adapter that fits it."""
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "fits")
    return ModelStore(tmp_path)


def merge_of(*adapters: str, base: str = "base", **more: Any) -> MergeRequest:
    return MergeRequest(kind="merge", base=base, adapters=list(adapters), target="new", **more)


def assert_refused(
    store: ModelStore, request: MergeRequest | ConvertRequest, error: type[GraftwerkError], *phrases: str
) -> None:
    """Preflight and worker refuse in the same words; the volume is unchanged."""
    before = content(store)
    work = merge_job.run if isinstance(request, MergeRequest) else convert_job.run
    doors: list[Callable[[], object]] = [
        lambda: preflight(request, store, {}),
        lambda: work(request, job_context(store.root)),  # type: ignore[arg-type]
    ]
    for door in doors:
        with pytest.raises(error) as caught:
            door()
        text = f"{caught.value.message} | {caught.value.hint}"
        for phrase in phrases:
            assert phrase in text
    assert_nothing_left(store, before)


def assert_nothing_left(store: ModelStore, before: list[Path]) -> None:
    assert "new" not in store.names()
    assert content(store) == before


def content(store: ModelStore) -> list[Path]:
    """Everything on the volume but the (empty) folder for what is being made."""
    return [path for path in sorted(store.root.rglob("*")) if path != store.root / ".staging"]
