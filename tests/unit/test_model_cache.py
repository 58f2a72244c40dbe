"""The model cache: the least recently used idle model is evicted first, a busy one never."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from services.generate import Engine, LoadedModel
from services.kinds.compare import CompareRequest
from services.kinds.generate import GenerateRequest
from services.kinds.shared import ModelChoice
from services.settings import Settings
from tests.job_context import job_context
from worker.inference import model_cache
from worker.inference.cached_model import CachedModel
from worker.inference.memory_wait import MemoryWait
from worker.inference.model_cache import ModelCache
from worker.inference.model_key import key_of
from worker.inference.model_memory import kv_limit_bytes, kv_limit_of, memory_limit_bytes
from worker.lifecycle import JobContext


@dataclass
class Volume:
    """Models of an invented size that load at once, and a cache of them."""

    cache: ModelCache
    context: JobContext

    def acquire(self, name: str) -> CachedModel | None:
        return self.cache.acquire(key_of(ModelChoice(model=name), self.context.store), self.context)

    def release(self, model: CachedModel | None) -> None:
        assert model is not None
        self.cache.release(model, owner="job")

    @property
    def names(self) -> list[str]:
        return [model.key.model for model in self.cache.models]


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")

    def load(folder: Path, **_: Any) -> LoadedModel:
        loaded = SimpleNamespace(size_bytes=40, device=torch.device("cpu"), model=None)
        return cast(LoadedModel, loaded)

    monkeypatch.setattr(model_cache, "load_model", load)
    engine = SimpleNamespace(close=lambda: None, drop_all=lambda: None, computes_here=True, is_lost=False)
    monkeypatch.setattr(model_cache, "Engine", lambda *_, **__: cast(Engine, engine))
    monkeypatch.setattr(model_cache, "model_bytes", lambda *_: 40)
    return Volume(ModelCache("cpu", 100, 4), job_context(tmp_path))


@pytest.mark.parametrize(
    ("total", "model", "limit"),
    [
        (64 * 2**30, 0, 16 * 2**30),
        (64 * 2**30, 30 * 2**30, 16 * 2**30),
        (32 * 2**30, 27 * 10**9, 32 * 2**30 - 27 * 10**9 - 350 * 2**20),
        (32 * 2**30, 40 * 10**9, 2 * 2**30),
    ],
)
def test_keys_and_values_take_a_quarter_or_what_a_large_model_leaves(
    total: int, model: int, limit: int
) -> None:
    assert kv_limit_bytes(total, model) == limit


def test_a_setting_limits_keys_and_values() -> None:
    limit = kv_limit_of(Settings.model_validate({"kv_cache_bytes": 5000}))
    assert (limit(0), limit(10**12)) == (5000, 5000)


def test_the_limit_of_keys_and_values_follows_the_largest_model(volume: Volume) -> None:
    cache = volume.cache = ModelCache("cpu", 100, 4, kv_limit=lambda model: 1000 - model)
    assert cache.memory.limit_bytes == 1000
    volume.release(volume.acquire("a"))
    assert cache.memory.limit_bytes == 960
    cache.evict_unused()
    assert cache.memory.limit_bytes == 1000


def test_a_loaded_model_is_shared(volume: Volume) -> None:
    first = volume.acquire("a")
    assert volume.acquire("a") is first
    assert first is not None
    assert first.refcount == 2


def test_the_least_recently_used_idle_model_is_evicted(volume: Volume) -> None:
    volume.release(volume.acquire("a"))
    volume.release(volume.acquire("b"))
    volume.release(volume.acquire("a"))
    volume.release(volume.acquire("c"))
    assert volume.names == ["a", "c"]


def test_a_busy_model_is_never_evicted_and_the_next_one_waits(volume: Volume) -> None:
    busy = volume.acquire("a")
    other = volume.acquire("b")
    assert volume.acquire("c") is None
    volume.release(other)
    assert volume.acquire("c") is not None
    assert volume.names == ["a", "c"]
    assert busy is volume.cache.models[0]


def test_a_model_fits_if_it_is_there_or_if_busy_ones_leave_room(volume: Volume) -> None:
    a, b, c = (key_of(ModelChoice(model=name), volume.context.store) for name in "abc")
    assert volume.cache.fits(c, 1000), "alone it may be larger than the limit"
    first, second = volume.acquire("a"), volume.acquire("b")
    assert volume.cache.busy_bytes == 80
    assert [volume.cache.fits(key, 40) for key in (a, b, c)] == [True, True, False]
    assert volume.cache.fits(c, 20)
    volume.release(second)
    assert volume.cache.fits(c, 60)
    assert not volume.cache.fits(c, 61)
    assert volume.names == ["a", "b"], "nothing is evicted by asking"
    volume.release(first)


def test_a_refused_job_blocks_until_its_model_fits(volume: Volume) -> None:
    wait, store = MemoryWait(volume.cache), volume.context.store
    busy = [volume.acquire(name) for name in "ab"]
    request = GenerateRequest(kind="generate", model="c", prompt="x")
    reason = wait.check("job", request, store)
    assert reason is not None
    assert reason.message == "c needs 40 bytes of memory; models of running jobs take 80 of 100."
    assert [wait.blocks("job"), wait.blocks("other")] == [True, False]
    variants = [{"model": "a"}, {"model": "c"}]
    compare = CompareRequest.model_validate({"kind": "compare", "variants": variants, "prompt": "x"})
    assert wait.check("compare", compare, store) is None, "its first model is loaded"
    assert wait.check("absent", request.model_copy(update={"model": "absent"}), store) is None
    volume.release(busy[0])
    assert not wait.blocks("job")
    assert wait.check("job", request, store) is None


def test_a_model_larger_than_the_limit_is_loaded_when_it_is_alone(volume: Volume) -> None:
    volume.cache.limit_bytes = 10
    volume.release(volume.acquire("a"))
    volume.release(volume.acquire("b"))
    assert volume.names == ["b"]


def test_a_changed_file_is_another_model(volume: Volume, tmp_path: Path) -> None:
    first = volume.acquire("a")
    (tmp_path / "a" / "config.json").write_text('{"a": 1}')
    assert volume.acquire("a") is not first


def test_the_limit_is_half_of_the_containers_memory(tmp_path: Path) -> None:
    file = tmp_path / "memory.max"
    file.write_text("1048576\n")
    assert memory_limit_bytes("cpu", file) == 524288
    file.write_text("max\n")
    assert memory_limit_bytes("cpu", file) > 2**28
