"""Descriptions of models, read in a process with limits: a hostile folder never hides the others, and nothing is read twice."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from services.errors import ReadLimitExceeded
from services.isolation.limits import Limits
from services.isolation.pool import ProcessPool
from services.jobs.model_records import RECORDS_KEY, ModelRecords
from services.models.store import ModelStore
from services.preflight.isolated import LIMITS
from services.preflight.model_reader import ModelReader
from tests.api_client import client_of, import_request
from tests.hostile_files import ADAPTER, HOSTILE, MIB, adapter, manifest

SLOW = "tokenizer.model: 32 MiB of fields"
"""Folder whose refusal takes some tenths of a second."""


@pytest.fixture
def redis() -> Any:
    return FakeRedis(server=FakeServer())


def pool_of(limits: Limits) -> Iterator[ProcessPool]:
    found = ProcessPool("services.preflight.reading", limits)
    yield found
    found.stop()


@pytest.fixture
def processes() -> Iterator[ProcessPool]:
    yield from pool_of(LIMITS)


@pytest.fixture
def hasty() -> Iterator[ProcessPool]:
    """Processes that have little time."""
    yield from pool_of(Limits(cpu_seconds=0.15))


@pytest.fixture
def small() -> Iterator[ProcessPool]:
    """Processes that have little memory."""
    yield from pool_of(Limits(cpu_seconds=10, memory_bytes=200 * MIB))


@pytest.fixture
def reader(tmp_path: Path, redis: Any, processes: ProcessPool) -> ModelReader:
    return ModelReader(ModelStore(tmp_path), ModelRecords(redis), processes)


def made(volume: Path, name: str, make: Any) -> Path:
    folder = volume / name
    folder.mkdir()
    make(folder)
    return folder


def odd_folders(volume: Path) -> None:
    """Folders each of which made the list fail as a whole."""
    made(volume, "saved", adapter(modules_to_save=5))
    made(volume, "targets", adapter(target_modules=[["q_proj"]]))
    made(volume, "tokens", adapter(trainable_token_indices={"embed_tokens": [0, "1", None]}))
    made(volume, "floats", adapter(token_indices=[1.5, float("nan")]))
    made(volume, "patterns", adapter(rank_pattern={"(?i)q_proj": "x"}))
    surrogate = made(volume, "surrogate", adapter())
    (surrogate / "adapter_config.json").write_text(
        json.dumps({**ADAPTER, "base_model_name_or_path": "\ud800"})
    )
    (made(volume, "manifest", adapter()) / "manifest.json").write_bytes(b'{"kind": 5')
    made(volume, "folder", lambda folder: (folder / "consolidated.00.pth").mkdir())
    made(volume, "loop", lambda folder: (folder / "consolidated.00.pth").symlink_to("consolidated.00.pth"))
    name = os.fsdecode(b"\xff\xfe.gguf")
    made(volume, "name", lambda folder: (folder / name).write_bytes(b"GGUF"))


def test_every_folder_is_described_and_odd_ones_with_their_problem(tmp_path: Path) -> None:
    odd_folders(tmp_path)
    made(tmp_path, "good", adapter())
    client = client_of(tmp_path)
    response = client.get("/api/models")
    assert response.status_code == 200, response.text
    problems = {model["name"]: model["problems"] for model in response.get_json()["models"]}
    assert problems.pop("good") == []
    assert len(problems) == 10
    assert all(len(found) == 1 for found in problems.values()), problems
    for name, found in problems.items():
        assert client.get(f"/api/models/{name}").get_json()["problems"] == found
        refused = client.post("/v1/completions", json={"model": name, "prompt": "a"})
        assert 400 <= refused.status_code < 500, refused.text
    assert client.get("/v1/models").get_json()["data"] == []


def test_a_folder_that_takes_too_long_is_described_once_and_stops_nobody(
    tmp_path: Path, redis: Any, hasty: ProcessPool
) -> None:
    folder = made(tmp_path, "slow", HOSTILE[SLOW][0])
    made(tmp_path, "good", adapter())
    reader = ModelReader(ModelStore(tmp_path), ModelRecords(redis), hasty)
    found = {summary.name: summary.problems for summary in reader.models()}
    assert found["good"] == []
    assert "Reading its headers took more than 0.15 s of processor time" in found["slow"][0]
    with pytest.raises(ReadLimitExceeded, match="slow: Reading its headers took more than"):
        reader.require_readable(["slow", "good", "absent"])
    hasty.stop()
    assert reader.describe("slow").problems == found["slow"]
    assert hasty.pids == [], "what is kept is not read again"
    (folder / "tokenizer.model").write_bytes(b"x")
    assert "neither a SentencePiece model nor" in reader.describe("slow").problems[0]


def test_a_folder_that_takes_too_much_memory_is_described_with_that(
    tmp_path: Path, redis: Any, small: ProcessPool
) -> None:
    made(tmp_path, "large", lambda folder: (folder / "manifest.json").write_bytes(manifest(188_000)))
    reader = ModelReader(ModelStore(tmp_path), ModelRecords(redis), small)
    with pytest.raises(ReadLimitExceeded, match=r"large: Reading its headers (took|ended)"):
        reader.require_readable(["large"])


def test_nothing_is_read_again_until_it_changes(
    tmp_path: Path, reader: ModelReader, redis: Any, processes: ProcessPool
) -> None:
    folder = made(tmp_path, "a", adapter())
    made(tmp_path, "b", adapter())
    first = reader.models()
    processes.stop()
    assert reader.models() == first
    assert processes.pids == []
    (folder / "adapter_config.json").write_text(json.dumps({**ADAPTER, "r": 3}))
    changed = reader.models()
    assert (changed[0].problems != [], changed[1]) == (True, first[1])
    (tmp_path / "a").rename(tmp_path / ".gone")
    assert [summary.name for summary in reader.models()] == ["b"]
    assert redis.hkeys(RECORDS_KEY) == [b"b"]


def test_without_redis_folders_are_described_each_time(
    tmp_path: Path, reader: ModelReader, redis: Any, processes: ProcessPool
) -> None:
    made(tmp_path, "a", adapter())
    redis.connection_pool.connection_kwargs["server"].connected = False
    assert [summary.problems for summary in reader.models()] == [[]]
    assert processes.pids != []


def test_a_submission_with_an_odd_folder_is_refused_and_no_server_error(tmp_path: Path) -> None:
    odd_folders(tmp_path)
    client = client_of(tmp_path)
    for name in ("saved", "tokens", "folder", "loop", "name", "manifest"):
        for body in (
            {"kind": "merge", "base": name, "adapters": ["patterns"], "target": "x"},
            {"kind": "convert", "source": name, "target": "x"},
            {"kind": "verify", "model": name},
        ):
            response = client.post("/api/jobs", json=body)
            assert 400 <= response.status_code < 500, response.text


def test_an_archive_with_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    request = import_request(tmp_path) | {"source": {"zip": "incoming/a.zip"}}
    data = b"PK\x01\x02" + bytes(42) + b"PK\x05\x06" + bytes(4) + b"\x01\x00\x01\x00\x2e" + bytes(9)
    (tmp_path / "incoming" / "a.zip").write_bytes(data)
    response = client_of(tmp_path).post("/api/jobs", json=request)
    assert response.status_code == 422, response.text
    assert response.get_json()["code"] in ("unreadable_file", "unsafe_archive")
