"""Descriptions of the models on the volume, kept until their files change: one hash in Redis for all API processes."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

RECORDS_KEY = "graftwerk:models"


class ModelRecords:
    """Descriptions by the model's name, as JSON. Without Redis nothing is kept, and every folder is read again."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def all(self) -> Mapping[str, bytes]:
        """Returns everything that is kept."""
        with suppress(RedisError):
            found = cast(dict[bytes, bytes], self._redis.hgetall(RECORDS_KEY))
            return {name.decode(): record for name, record in found.items()}
        return {}

    def get(self, name: str) -> bytes | None:
        """Returns what is kept of one model, None if that is nothing."""
        with suppress(RedisError):
            return cast(bytes | None, self._redis.hget(RECORDS_KEY, name))
        return None

    def keep(self, name: str, record: bytes) -> None:
        """Keeps the description of a model in place of an earlier one."""
        with suppress(RedisError):
            self._redis.hset(RECORDS_KEY, name, cast(str, record))

    def drop(self, names: Collection[str]) -> None:
        """Removes what is kept of models that are no longer on the volume."""
        with suppress(RedisError):
            if names:
                self._redis.hdel(RECORDS_KEY, *names)
