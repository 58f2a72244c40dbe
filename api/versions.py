"""Versions of the parts of the service that the API knows."""

import importlib.metadata
import platform
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from services.jobs.records import reaching_redis

SERVICE = "graftwerk-service"


def service_versions() -> dict[str, str]:
    """Returns the versions of the service and of Python."""
    return {SERVICE: importlib.metadata.version(SERVICE), "python": platform.python_version()}


@reaching_redis()
def redis_version(redis: Redis) -> dict[str, str]:
    """Returns the version of the Redis server; nothing if its access list refuses the command.

    Raises:
        NotReady: Redis does not answer.
    """
    try:
        server: Any = redis.info("server")
    except ResponseError:
        return {}
    return {"redis": str(server["redis_version"])}
