"""Requests to the service as data: method, path, content, and the function that reads the response.

The synchronous and the asynchronous client send the same calls; only the sending differs.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter

from graftwerk.model_results import ModelSummary
from graftwerk.models import Delivery, Job, JsonObject
from graftwerk.service_models import (
    Dependents,
    HubModel,
    HubRepository,
    IncomingList,
    System,
    TemplateDescription,
)

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)

LONGEST_WAIT_SECONDS = 30
"""Seconds for which one request waits for the end of a job; proxies end a silent one after 60 seconds."""

_OBJECT = TypeAdapter(JsonObject)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and the reader of its response, which raises ValueError if the response has another form."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    content: Mapping[str, Any] = field(default_factory=dict)


# ---- readers of responses -----------------------------------------------------------------------------


def _nothing(_: httpx.Response) -> None:
    return None


def _text(response: httpx.Response) -> str:
    return response.text


def _object(response: httpx.Response) -> JsonObject:
    return _OBJECT.validate_json(response.content)


def _one(model: type[ModelT]) -> Callable[[httpx.Response], ModelT]:
    return lambda response: model.model_validate_json(response.content)


def _listed(key: str, model: type[ModelT]) -> Callable[[httpx.Response], list[ModelT]]:
    items = TypeAdapter(list[model])  # type: ignore[valid-type]

    def read(response: httpx.Response) -> list[ModelT]:
        return items.validate_python(_object(response).get(key))

    return read


# ---- jobs ---------------------------------------------------------------------------------------------


def submit(request: JsonObject) -> Call[Job]:
    """Submits a request with an idempotency key of its own, so that a resent one queues no second job."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    return Call("POST", "/api/jobs", _one(Job), {"json": request, "headers": headers})


def put(job_id: str, request: JsonObject) -> Call[Job]:
    """Submits a request under an id of the client; the same request again is the same job."""
    return Call("PUT", job_path(job_id), _one(Job), {"json": request})


def plan(request: JsonObject) -> Call[JsonObject]:
    """Requests the plan of a request without queueing it."""
    return Call("POST", "/api/jobs", _object, {"json": request, "params": {"dry_run": "true"}})


def jobs(**filters: str | int | None) -> Call[list[Job]]:
    """Requests the newest jobs that pass the filters which are not None."""
    return Call("GET", "/api/jobs", _listed("jobs", Job), {"params": _given(filters)})


def job(job_id: str) -> Call[Job]:
    """Requests the state of a job."""
    return Call("GET", job_path(job_id), _one(Job))


def ended_job(job_id: str, seconds: int) -> Call[tuple[Job, bool]]:
    """Requests a job when it has ended, or after some seconds; True: the service has waited (RFC 7240)."""

    def read(response: httpx.Response) -> tuple[Job, bool]:
        return _one(Job)(response), seconds > 0 and "Preference-Applied" in response.headers

    return Call("GET", job_path(job_id), read, {"headers": {"Prefer": f"wait={seconds}"}})


def cancel(job_id: str) -> Call[Job]:
    """Requests the cancellation of a job."""
    return Call("POST", f"{job_path(job_id)}/cancel", _one(Job))


def retry(job_id: str) -> Call[Job]:
    """Submits the request of an ended job again."""
    return Call("POST", f"{job_path(job_id)}/retry", _one(Job))


def delete_job(job_id: str) -> Call[None]:
    """Deletes the record of an ended job."""
    return Call("DELETE", job_path(job_id), _nothing)


def log(job_id: str) -> Call[str]:
    """Requests the log of a job."""
    return Call("GET", f"{job_path(job_id)}/log", _text)


def deliveries(job_id: str) -> Call[list[Delivery]]:
    """Requests the messages to the webhook of a job."""
    return Call("GET", f"{job_path(job_id)}/deliveries", _listed("deliveries", Delivery))


def redeliver(job_id: str, delivery_id: str) -> Call[Delivery]:
    """Requests that a message to a webhook is sent again."""
    path = f"{job_path(job_id)}/deliveries/{quote(delivery_id, safe='')}/redeliver"
    return Call("POST", path, _one(Delivery))


# ---- models, system, Hub ------------------------------------------------------------------------------


def models() -> Call[list[ModelSummary]]:
    """Requests the summaries of all models."""
    return Call("GET", "/api/models", _listed("models", ModelSummary))


def model(name: str) -> Call[ModelSummary]:
    """Requests the summary of a model."""
    return Call("GET", model_path(name), _one(ModelSummary))


def delete_model(name: str) -> Call[None]:
    """Deletes a model."""
    return Call("DELETE", model_path(name), _nothing)


def dependents(name: str) -> Call[Dependents]:
    """Requests the dependents of a model."""
    return Call("GET", f"{model_path(name)}/dependents", _one(Dependents))


def incoming() -> Call[IncomingList]:
    """Requests the list of the files that can be imported."""
    return Call("GET", "/api/incoming", _one(IncomingList))


def templates() -> Call[list[TemplateDescription]]:
    """Requests the prompt templates."""
    return Call("GET", "/api/templates", _listed("templates", TemplateDescription))


def system() -> Call[System]:
    """Requests the state of workers, queues and the volume."""
    return Call("GET", "/api/system", _one(System))


def readiness() -> Call[None]:
    """Requests the readiness of the service, which is refused while it is not ready."""
    return Call("GET", "/readyz", _nothing)


def hub_search(search: str, limit: int) -> Call[list[HubModel]]:
    """Searches the Hub."""
    params = {"search": search, "limit": str(limit)}
    return Call("GET", "/api/hub/models", _listed("models", HubModel), {"params": params})


def hub_model(repository: str, revision: str | None) -> Call[HubRepository]:
    """Requests the files of a repository of the Hub."""
    path = f"/api/hub/models/{quote(repository)}"
    return Call("GET", path, _one(HubRepository), {"params": _given({"revision": revision})})


def job_path(job_id: str) -> str:
    """Returns the path of a job."""
    return f"/api/jobs/{quote(job_id, safe='')}"


def model_path(name: str) -> str:
    """Returns the path of a model."""
    return f"/api/models/{quote(name, safe='')}"


def _given(params: Mapping[str, str | int | None]) -> dict[str, str]:
    return {name: str(value) for name, value in params.items() if value is not None}
