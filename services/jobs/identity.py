"""Identity of a service: what belongs to it on a volume or a server that it shares with other services."""

from typing import cast
from uuid import uuid4

from redis import Redis
from rq.utils import as_text

from services.jobs.records import reaching_redis

IDENTITY_KEY = "graftwerk:service"

VOLUME_KEY = "graftwerk:volume"
"""Marker of the service's model volume."""

TAG_LENGTH = 8


def service_identity(redis: Redis) -> str:
    """Returns the id of this service, which lasts as long as its Redis: a service recognizes itself by it."""
    redis.set(IDENTITY_KEY, str(uuid4()), nx=True)
    return as_text(redis.get(IDENTITY_KEY) or b"")


def service_tag(redis: Redis) -> str:
    """Returns the beginning of the identity, which names of folders carry."""
    return service_identity(redis)[:TAG_LENGTH]


class VolumeIdentity:
    """Marker of the model volume that the service of this Redis uses."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    @reaching_redis()
    def learn(self, marker: bytes | None) -> bytes | None:
        """Returns the marker of the service's volume; if there is none yet, this one.

        Raises:
            NotReady, QueueFull: Redis does not answer, or has no memory left.
        """
        known = cast(bytes | None, self._redis.get(VOLUME_KEY))
        if known is None and marker is not None:
            self._redis.set(VOLUME_KEY, marker, nx=True)
            known = cast(bytes | None, self._redis.get(VOLUME_KEY))
        return known

    @reaching_redis()
    def replace(self, marker: bytes) -> None:
        """Makes this marker the one of the service's volume. Raises NotReady, QueueFull."""
        self._redis.set(VOLUME_KEY, marker)
