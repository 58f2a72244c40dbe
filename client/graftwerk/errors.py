"""Errors that a caller of the client may see; `graftwerk` commands end with their exit codes."""

from typing import ClassVar


class ClientError(Exception):
    """An error in two sentences: `detail` is the finding, `hint` the remedy."""

    exit_code: ClassVar[int] = 1

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class UsageError(ClientError):
    """Invalid options or input of a command."""

    exit_code = 2


class ApiError(ClientError):
    """A refusal by the service: the `code`, HTTP status and sentences of its problem+json."""

    exit_code = 3

    def __init__(self, code: str, detail: str, hint: str = "", *, status: int = 0) -> None:
        super().__init__(detail, hint)
        self.code = code
        self.status = status


class UnreachableError(ClientError):
    """No Graftwerk service responds at the address."""

    exit_code = 4


class WaitTimeoutError(ClientError, TimeoutError):
    """A job has not ended within the time that its caller allowed; it keeps running."""
