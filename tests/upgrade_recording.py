"""Loads the recording of version 0.1.0 in `tests/fixtures/upgrade_0_1_0`."""

import base64
import gzip
import json
import os
import tarfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from redis import Redis

FOLDER = Path(__file__).parent / "fixtures" / "upgrade_0_1_0"

TIMES = range(10**9, 10**11)
"""Scores of sorted sets that are seconds since 1970; microseconds, infinity and -1 are outside."""

PAUSE_SECONDS = 60.0
"""Time between the end of the recording and its loading, as the loaded Redis sees it."""


def recorded_keys() -> dict[str, dict[str, Any]]:
    """Returns the recorded Redis keys, each with `type`, `value` and, if it expires, `ttl_ms`."""
    keys: dict[str, dict[str, Any]] = _recording()["keys"]
    return keys


def load_redis(redis: Redis) -> None:
    """Writes the recorded keys into an empty Redis.

    Lifetimes and scores that are times count from now, and keys that would have expired are left out. Times in
    records and ids of stream entries stay as recorded.
    """
    recording = _recording()
    shift_seconds = time.time() - recording["recorded_at"] - PAUSE_SECONDS
    with redis.pipeline() as pipe:
        for name, entry in recording["keys"].items():
            left_ms = entry.get("ttl_ms", float("inf")) - PAUSE_SECONDS * 1000
            if left_ms <= 0:
                continue
            _write(pipe, name, entry["type"], entry["value"], shift_seconds)
            if "ttl_ms" in entry:
                pipe.pexpire(name, round(left_ms))
        pipe.execute()


def unpack_volume(folder: Path) -> None:
    """Unpacks the volume; files keep their modification times to the nanosecond, which manifests and journals compare."""
    with tarfile.open(FOLDER / "volume.tar.gz") as archive:
        archive.extractall(folder, filter="data")
        for member in archive.getmembers():
            if member.isfile():
                changed_ns = int(Decimal(member.pax_headers["mtime"]) * 10**9)
                os.utime(folder / member.name, ns=(changed_ns, changed_ns))


def _recording() -> dict[str, Any]:
    recording: dict[str, Any] = json.loads(gzip.decompress((FOLDER / "redis.json.gz").read_bytes()))
    return recording


def _write(pipe: Any, name: str, kind: str, value: Any, shift_seconds: float) -> None:
    match kind:
        case "string":
            pipe.set(name, _bytes(value))
        case "hash":
            pipe.hset(name, mapping={_bytes(field): _bytes(content) for field, content in value})
        case "list":
            pipe.rpush(name, *map(_bytes, value))
        case "set":
            pipe.sadd(name, *map(_bytes, value))
        case "zset":
            scores = {_bytes(member): float(score) for member, score in value}
            pipe.zadd(name, {member: _shifted(score, shift_seconds) for member, score in scores.items()})
        case "stream":
            for id, fields in value:
                pipe.xadd(name, {_bytes(field): _bytes(content) for field, content in fields}, id=id)
        case _:
            raise ValueError(f"{name} is of the unknown type {kind!r}")


def _shifted(score: float, shift_seconds: float) -> float:
    return score + shift_seconds if TIMES.start <= score < TIMES.stop else score


def _bytes(value: str | dict[str, str]) -> bytes:
    """Returns a recorded value, which is text, or `{"base64": …}` if it is not UTF-8."""
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])
