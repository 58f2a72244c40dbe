"""The service's engine setting and the engines of its workers, in Redis: the API writes the one, workers the other."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from redis import Redis
from redis.exceptions import RedisError
from rq.utils import as_text

from services.errors import InvalidSettings, NotReady, QueueFull
from services.generate_engines import DEFAULT_LIMITS, Engines, GenerateEngine, GgufLimits
from services.jobs.records import reaching_redis

ENGINE_KEY = "graftwerk:engine"
"""Hash of `setting`, that of the API; of the generate worker that started last, its engines, its largest rank of adapters and
the bytes of a KV cache of vLLM;
`refused`, the reason for which one has not started since then."""

PATIENCE_SECONDS = 30
"""Time that a starting worker waits for an API with its setting."""


class EngineRecord:
    """Engines of the service of this Redis, for a process with this setting."""

    def __init__(self, redis: Redis, setting: GenerateEngine, gguf: GgufLimits = DEFAULT_LIMITS) -> None:
        """`gguf` are the limits that plans state."""
        self._redis = redis
        self._setting = setting
        self._is_announced = False
        self._last = Engines(setting, gguf=gguf)

    @reaching_redis()
    def announce(self) -> None:
        """Makes this process's setting the service's. Raises NotReady, QueueFull."""
        self._redis.hset(ENGINE_KEY, "setting", self._setting)
        self._is_announced = True

    def engines(self) -> Engines:
        """Returns the setting and the engines that workers have: all of this version until one has started.

        Without Redis they are the last ones that were read.
        """
        with suppress(RedisError, NotReady, QueueFull):
            if not self._is_announced:
                self.announce()
            names = ("available", "adapter_rank", "vllm_cache_bytes")
            available, rank, cache_bytes = self._redis.hmget(ENGINE_KEY, *names)
            if available is not None:
                self._last = replace(self._last, available=frozenset(as_text(available).split()))
            if rank is not None:
                self._last = replace(self._last, adapter_rank=int(rank))
            if cache_bytes is not None:
                self._last = replace(self._last, vllm_cache_bytes=int(cache_bytes))
        return self._last

    @reaching_redis()
    def register(self, own: Engines, pause: Callable[[float], None] = time.sleep) -> None:
        """Checks that a worker has the service's engine, and records the engines that it has.

        An API that starts at the same time with a new setting has `PATIENCE_SECONDS` to announce it.

        Raises:
            InvalidSettings: its setting is another one than the service's, or a package is missing.
            NotReady, QueueFull: Redis does not answer, or has no memory left.
        """
        try:
            self._check(own, pause)
        except InvalidSettings as error:
            self._redis.hset(ENGINE_KEY, "refused", error.message)
            raise
        available = " ".join(sorted(own.available))
        self._redis.hset(
            ENGINE_KEY,
            mapping={
                "available": available,
                "adapter_rank": own.adapter_rank,
                "vllm_cache_bytes": own.vllm_cache_bytes,
            },
        )
        self._redis.hdel(ENGINE_KEY, "refused")

    @reaching_redis()
    def refusal(self) -> str | None:
        """Returns the reason for which a worker was refused since the last one has started. Raises NotReady."""
        found = self._redis.hget(ENGINE_KEY, "refused")
        return None if found is None else as_text(found)

    def _check(self, own: Engines, pause: Callable[[float], None]) -> None:
        self._redis.hsetnx(ENGINE_KEY, "setting", own.setting)
        for _ in range(PATIENCE_SECONDS):
            if self._announced() == own.setting:
                break
            pause(1)
        if (setting := self._announced()) != own.setting:
            raise InvalidSettings(
                f"This worker's GENERATE_ENGINE is {own.setting!r}, and the service's is {setting!r}.",
                "Set the same one for the API and all workers, and start the API first.",
            )
        if not own.is_complete:
            raise InvalidSettings(
                f"GENERATE_ENGINE is {own.setting!r}, and this worker has only {', '.join(sorted(own.available))}.",
                "Install that engine's packages, or unset GENERATE_ENGINE.",
            )

    def _announced(self) -> str:
        return as_text(self._redis.hget(ENGINE_KEY, "setting") or b"")
