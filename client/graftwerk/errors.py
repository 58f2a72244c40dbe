"""Errors that a caller of the client may see; `graftwerk` commands end with their exit codes."""

from collections.abc import Mapping
from typing import Any, ClassVar


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
    """A refusal by the service, read from its problem+json (RFC 9457).

    Attributes:
        code: stable name of the error, such as `model_not_found`.
        status: HTTP status.
        detail: the finding, with names and numbers.
        hint: the remedy, or the empty string.
        extensions: all other fields of the problem.
    """

    exit_code = 3

    def __init__(
        self,
        code: str,
        detail: str,
        hint: str = "",
        *,
        status: int = 0,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, hint)
        self.code = code
        self.status = status
        self.extensions = dict(extensions or {})

    @property
    def order(self) -> list[str] | None:
        """Names of the adapters in the right order, of a refusal with the code `wrong_adapter_order`."""
        return self.extensions.get("order")

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Invalid fields of the request, each with its own message; empty if the refusal has another reason."""
        return self.extensions.get("errors") or []


class UnreachableError(ClientError):
    """No Graftwerk service responds at the address."""

    exit_code = 4


class WaitTimeoutError(ClientError, TimeoutError):
    """A job has not ended within the time that its caller allowed; it keeps running."""


class JobFailedError(ClientError):
    """A job has ended without success: it failed or was canceled.

    Attributes:
        code: code of the job's error, `canceled` for a canceled job.
        job_id: id of the job.
    """

    def __init__(self, code: str, detail: str, hint: str = "", *, job_id: str) -> None:
        super().__init__(detail, hint)
        self.code = code
        self.job_id = job_id
