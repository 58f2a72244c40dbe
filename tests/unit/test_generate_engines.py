"""Engines: the table, the setting of the service, and workers whose setting differs."""

import json
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from services.errors import InvalidSettings
from services.generate_engines import ALL_ENGINES, Engines, GenerateEngine, GgufLimits
from services.jobs.engine_record import PATIENCE_SECONDS, EngineRecord


@pytest.mark.parametrize(
    ("setting", "kind", "engine"),
    [
        ("auto", "huggingface", "graftwerk"),
        ("auto", "gguf", "llama.cpp"),
        ("graftwerk", "huggingface", "graftwerk"),
        ("graftwerk", "gguf", None),
        ("llama.cpp", "huggingface", "graftwerk"),
        ("llama.cpp", "gguf", "llama.cpp"),
        ("vllm", "huggingface", "vllm"),
        ("vllm", "gguf", None),
        ("auto", "original", None),
        ("auto", "adapter", None),
    ],
)
def test_the_engine_of_a_model(setting: GenerateEngine, kind: str, engine: str | None) -> None:
    everything = frozenset({"graftwerk", "llama.cpp", "vllm"})
    assert Engines(setting, everything).of(kind) == engine


def test_an_engine_that_workers_lack_answers_nothing() -> None:
    assert Engines("auto", frozenset({"graftwerk"})).of("gguf") is None
    assert Engines("vllm", frozenset({"graftwerk"})).of("huggingface") is None


def test_a_process_with_torch_has_the_reference_engine() -> None:
    assert "graftwerk" in Engines.installed("auto").available


def test_a_process_has_vllm_if_its_program_is_found(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    assert "vllm" not in Engines.installed("vllm", {"vllm": str(program)}).available
    program.touch(mode=0o755)
    assert Engines.installed("vllm", {"vllm": str(program)}).is_complete


def test_the_api_learns_the_engines_of_workers(redis: Redis) -> None:
    record = EngineRecord(redis, "auto")
    assert record.engines() == ALL_ENGINES
    record.register(Engines("auto", frozenset({"graftwerk"})))
    assert record.engines() == Engines("auto", frozenset({"graftwerk"}))
    own = Engines("auto", frozenset({"graftwerk", "vllm"}), adapter_rank=8, vllm_cache_bytes=2**30)
    record.register(own)
    assert record.engines() == own


def test_engines_reach_another_process_as_json() -> None:
    engines = Engines("vllm", frozenset({"vllm"}), GgufLimits(3, 64), adapter_rank=8, vllm_cache_bytes=2**30)
    assert Engines.from_json(json.loads(json.dumps(engines.as_json()))) == engines


def test_a_worker_of_another_engine_refuses_to_start(redis: Redis) -> None:
    EngineRecord(redis, "auto").announce()
    waits: list[float] = []
    with pytest.raises(InvalidSettings) as caught:
        EngineRecord(redis, "vllm").register(Engines("vllm", frozenset({"vllm"})), waits.append)
    assert caught.value.message == "This worker's GENERATE_ENGINE is 'vllm', and the service's is 'auto'."
    assert len(waits) == PATIENCE_SECONDS
    assert redis.hget("graftwerk:engine", "available") is None


def test_a_worker_waits_for_the_api_of_its_setting(redis: Redis) -> None:
    EngineRecord(redis, "auto").announce()
    api = EngineRecord(redis, "graftwerk")
    own = Engines("graftwerk", frozenset({"graftwerk"}))
    EngineRecord(redis, "graftwerk").register(own, lambda _: api.announce())
    assert api.engines() == own


def test_a_worker_without_the_packages_refuses_to_start(redis: Redis) -> None:
    with pytest.raises(InvalidSettings, match="this worker has only graftwerk"):
        EngineRecord(redis, "vllm").register(Engines("vllm", frozenset({"graftwerk"})))


def test_without_redis_the_last_engines_count(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    record, own = EngineRecord(redis, "auto"), Engines("auto", frozenset({"graftwerk", "vllm"}))
    record.register(own)
    assert record.engines() == own

    def lost(*_: object) -> None:
        raise ConnectionError("Connection refused")

    monkeypatch.setattr(redis, "hmget", lost)
    assert record.engines() == own
