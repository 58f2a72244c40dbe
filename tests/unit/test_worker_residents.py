"""Which models stay in memory: the least recently used idle one goes first, a busy one never."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from services.generate import Engine, LoadedModel
from services.kinds.generate import GenerateRequest
from tests.job_context import job_context
from worker.inference import model_cache as room
from worker.inference.model_cache import CachedModel, ModelCache, memory_limit_bytes
from worker.lifecycle import JobContext


@dataclass
class Shelf:
    """Models of a made-up size, for which loading costs nothing."""

    residents: ModelCache
    context: JobContext

    def take(self, name: str) -> CachedModel | None:
        return self.residents.take(GenerateRequest(kind="generate", model=name, prompt="x"), self.context)

    @property
    def names(self) -> list[str]:
        return [resident.key.model for resident in self.residents.models]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")

    def load(folder: Path, **_: Any) -> LoadedModel:
        facts = SimpleNamespace(size_bytes=40, device=torch.device("cpu"), model=None)
        return cast(LoadedModel, facts)

    monkeypatch.setattr(room, "load_model", load)
    monkeypatch.setattr(room, "Engine", lambda loaded, slots: cast(Engine, SimpleNamespace()))
    monkeypatch.setattr(room, "_needed_bytes", lambda *_: 40)
    return Shelf(ModelCache("cpu", 100, 4), job_context(tmp_path))


def release(resident: CachedModel | None) -> None:
    assert resident is not None
    resident.users -= 1


def test_a_loaded_model_is_shared(shelf: Shelf) -> None:
    first = shelf.take("a")
    assert shelf.take("a") is first
    assert first is not None
    assert first.users == 2


def test_the_idle_model_that_was_used_longest_ago_makes_room(shelf: Shelf) -> None:
    release(shelf.take("a"))
    release(shelf.take("b"))
    release(shelf.take("a"))
    release(shelf.take("c"))
    assert shelf.names == ["a", "c"]


def test_a_busy_model_is_never_given_up_and_the_newcomer_waits(shelf: Shelf) -> None:
    busy = shelf.take("a")
    other = shelf.take("b")
    assert shelf.take("c") is None
    release(other)
    assert shelf.take("c") is not None
    assert shelf.names == ["a", "c"]
    assert busy is shelf.residents.models[0]


def test_a_model_larger_than_the_limit_is_loaded_when_it_is_alone(shelf: Shelf) -> None:
    shelf.residents.limit_bytes = 10
    release(shelf.take("a"))
    release(shelf.take("b"))
    assert shelf.names == ["b"]


def test_a_changed_file_is_another_model(shelf: Shelf, tmp_path: Path) -> None:
    first = shelf.take("a")
    (tmp_path / "a" / "config.json").write_text('{"a": 1}')
    assert shelf.take("a") is not first


def test_the_limit_is_half_of_what_the_container_may_use(tmp_path: Path) -> None:
    file = tmp_path / "memory.max"
    file.write_text("1048576\n")
    assert memory_limit_bytes("cpu", file) == 524288
    file.write_text("max\n")
    assert memory_limit_bytes("cpu", file) > 2**28
