"""What the API answers, as values; and the errors that a caller of the client may meet."""

from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]

JsonObject = dict[str, Any]


class Progress(BaseModel):
    """How far a running job is; `unit` says what `done` and `total` count."""

    stage: str
    done: int
    total: int
    unit: str
    fraction: float | None = None
    eta_seconds: float | None = None


class Failure(BaseModel):
    """Why a job failed: a stable code, what happened and what to do."""

    code: str
    message: str
    hint: str = ""


class Job(BaseModel):
    """A job as the API tells it. Fields that this client does not know are kept and given on."""

    model_config = ConfigDict(extra="allow")

    id: str
    kind: str
    status: Status
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    after: list[str] = []
    queue_position: int | None = None
    progress: Progress | None = None
    request: JsonObject = {}
    result: JsonObject | None = None
    error: Failure | None = None
    metadata: dict[str, str] = {}

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to this job."""
        return self.status in ("succeeded", "failed", "canceled")

    @property
    def title(self) -> str:
        """What the job is about, in a few words: `merge → ab`, `generate with ab`."""
        if self.kind == "compare":
            return f"compare {len(self.request.get('variants', []))} models"
        if "target" not in self.request:
            return f"{self.kind} with {self.request.get('model', '?')}"
        return f"{self.kind} → {self.request.get('target', '?')}"


class ClientError(Exception):
    """What went wrong (`detail`) and what to do about it (`hint`); the command ends with `exit_code`."""

    exit_code: ClassVar[int] = 1

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class UsageError(ClientError):
    """The command was not understood."""

    exit_code = 2


class ApiError(ClientError):
    """The service refused a request: the `code` and the sentences of its problem+json."""

    exit_code = 3

    def __init__(self, code: str, detail: str, hint: str = "", *, status: int = 0) -> None:
        super().__init__(detail, hint)
        self.code = code
        self.status = status


class UnreachableError(ClientError):
    """No Graftwerk answers at the address."""

    exit_code = 4
