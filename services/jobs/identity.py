"""Identity of a service: what belongs to it on a volume or a server that it shares with other services."""

from uuid import uuid4

from redis import Redis
from rq.utils import as_text

IDENTITY_KEY = "graftwerk:service"

TAG_LENGTH = 8


def service_identity(redis: Redis) -> str:
    """Returns the id of this service, which lasts as long as its Redis: a service recognizes itself by it."""
    redis.set(IDENTITY_KEY, str(uuid4()), nx=True)
    return as_text(redis.get(IDENTITY_KEY) or b"")


def service_tag(redis: Redis) -> str:
    """Returns the beginning of the identity, which names of folders carry."""
    return service_identity(redis)[:TAG_LENGTH]
