"""Sessions of people in browsers, as far as they are in Redis: the secret that signs them, and those that were ended."""

import secrets

from redis import Redis
from rq.utils import as_text

from services.jobs.records import reaching_redis

SECRET_KEY = "graftwerk:session-secret"


class SessionRecords:
    """The secret of all processes of the API, and the ids of sessions that people have signed out of."""

    def __init__(self, redis: Redis, secret: str | None) -> None:
        """`secret` is the setting's; without one it is made once and kept in Redis."""
        self._redis = redis
        self._secret = secret

    @reaching_redis()
    def secret(self) -> str:
        """Returns the secret that signs sessions.

        Raises:
            NotReady: Redis does not answer.
        """
        if self._secret is not None:
            return self._secret
        found = self._redis.get(SECRET_KEY)
        if found is None:
            self._redis.set(SECRET_KEY, secrets.token_hex(32), nx=True)
            found = self._redis.get(SECRET_KEY)
        return as_text(found or b"")

    @reaching_redis()
    def end(self, session_id: str, seconds: int) -> None:
        """Ends a session, whose cookie is valid for this time at most.

        Raises:
            NotReady: Redis does not answer.
        """
        self._redis.set(_ended_key(session_id), 1, ex=seconds)

    @reaching_redis()
    def is_ended(self, session_id: str) -> bool:
        """Returns True for a session that was ended.

        Raises:
            NotReady: Redis does not answer.
        """
        return bool(self._redis.exists(_ended_key(session_id)))


def _ended_key(session_id: str) -> str:
    return f"graftwerk:signed-out:{session_id}"
