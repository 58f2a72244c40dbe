"""Jobs as the API returns them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Generic, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_serializer, field_validator
from typing_extensions import TypeVar

from graftwerk import request_parts
from graftwerk.errors import JobFailedError
from graftwerk.inference_results import (
    CompareResult,
    EmbedResult,
    GenerateResult,
    PerplexityResult,
    TokenizeResult,
)
from graftwerk.model_results import (
    CombineResult,
    ConvertResult,
    ExtendTokenizerResult,
    ExtractResult,
    ImportResult,
    MergeResult,
    PublishToHubResult,
    VerifyResult,
)
from graftwerk.notebook import html_of
from graftwerk.result import Failure, JobResult

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]

JsonObject = request_parts.JsonObject

RESULTS: Mapping[str, type[JobResult]] = {
    "import": ImportResult,
    "convert": ConvertResult,
    "merge": MergeResult,
    "publish-to-hub": PublishToHubResult,
    "verify": VerifyResult,
    "extend-tokenizer": ExtendTokenizerResult,
    "extract": ExtractResult,
    "combine": CombineResult,
    "generate": GenerateResult,
    "compare": CompareResult,
    "embed": EmbedResult,
    "perplexity": PerplexityResult,
    "tokenize": TokenizeResult,
}
"""Model of the result of each kind."""

ResultT_co = TypeVar("ResultT_co", bound=JobResult, default=JobResult, covariant=True)


_NOT_IN_TABLES = {"id", "kind", "status", "request", "links", "progress", "queue_position", "waiting_for"}


class Progress(BaseModel):
    """Progress of a running job; `unit` names what `done` and `total` count."""

    stage: str
    done: int
    total: int
    unit: str
    fraction: float | None = None
    eta_seconds: float | None = None


class Attempt(BaseModel):
    """One attempt to send a message: the receiver's status code, or the reason why there is none."""

    model_config = ConfigDict(extra="allow")

    at: datetime
    seconds: float
    status_code: int | None = None
    error: str | None = None


class Delivery(BaseModel):
    """One message to the webhook of a job."""

    model_config = ConfigDict(extra="allow")

    id: str
    event: str
    url: str
    status: Literal["pending", "delivered", "failed"]
    created_at: datetime
    next_attempt_at: float | None = None
    attempts: list[Attempt] = []


class WaitingFor(BaseModel):
    """Reason why a queued job does not run yet: `memory`, `worker`, `volume` or `jobs`, and a sentence."""

    what: str
    message: str


class Job(BaseModel, Generic[ResultT_co]):
    """State of a job. Fields that this version does not know are kept."""

    model_config = ConfigDict(extra="allow")

    id: str
    kind: str
    status: Status
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    after: list[str] = []
    queue_position: int | None = None
    waiting_for: WaitingFor | None = None
    warnings: list[str] = []
    progress: Progress | None = None
    request: JsonObject = {}
    result: ResultT_co | None = None
    error: Failure | None = None
    metadata: dict[str, str] = {}

    @field_validator("result", mode="before")
    @classmethod
    def _result_of_its_kind(cls, value: object, info: ValidationInfo) -> object:
        """Reads a result by its kind; one that another version wrote differently is kept as a plain `JobResult`."""
        if not isinstance(value, dict):
            return value
        try:
            return RESULTS.get(info.data.get("kind", ""), JobResult).model_validate(value)
        except ValidationError:
            return JobResult.model_validate(value)

    @field_serializer("result")
    def _result_as_received(self, result: JobResult | None) -> JsonObject | None:
        return None if result is None else fields_of(result)

    def __repr__(self) -> str:
        detail = f", {self.detail}" if self.detail else ""
        return f"<Job {self.id} {self.title}: {self.status}{detail}>"

    def _repr_html_(self) -> str:
        fields = self.model_dump(mode="json", exclude_unset=True, exclude=_NOT_IN_TABLES)
        state = {"id": self.id, "status": self.status, "detail": self.detail}
        return html_of(self.title, state | fields)

    @property
    def detail(self) -> str:
        """State beyond the status: the code of the error, the reason for waiting, stage and share."""
        if self.error is not None and self.status == "failed":
            return self.error.code
        if self.status == "queued" and self.waiting_for is not None:
            return f"waiting for {self.waiting_for.what}"
        if self.status == "queued" and self.queue_position is not None:
            return f"position {self.queue_position}"
        if self.status == "running" and self.progress is not None:
            share = "" if self.progress.fraction is None else f" {self.progress.fraction:.0%}"
            return f"{self.progress.stage}{share}"
        return ""

    def raise_for_status(self) -> Self:
        """Returns this job if it has not failed, as `client.merge(…).wait().raise_for_status()`.

        Raises:
            JobFailedError: the job failed or was canceled.
        """
        if self.status in ("failed", "canceled"):
            error = self.error or Failure(code=self.status, message=f"The job {self.id} was {self.status}.")
            raise JobFailedError(error.code, error.message, error.hint, job_id=self.id)
        return self

    @property
    def ended(self) -> bool:
        """True once the job has succeeded, failed or been canceled."""
        return self.status in ("succeeded", "failed", "canceled")

    @property
    def title(self) -> str:
        """Short name for people: `merge → ab`, `generate with ab`."""
        if self.kind == "compare":
            return f"compare {len(self.request.get('variants', []))} models"
        if "repository" in self.request:
            return f"{self.kind}: {self.request.get('model', '?')} → {self.request['repository']}"
        if "target" not in self.request:
            return f"{self.kind} with {self.request.get('model', '?')}"
        return f"{self.kind} → {self.request.get('target', '?')}"


def fields_of(result: BaseModel) -> JsonObject:
    """Returns the JSON object that a result was read from."""
    return result.model_dump(mode="json", exclude_unset=True)
