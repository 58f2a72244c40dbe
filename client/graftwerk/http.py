"""The Python client: submit jobs, follow them, look at models, over HTTP.

with Graftwerk("http://127.0.0.1:8000") as graftwerk:
    job = graftwerk.submit({"kind": "convert", "source": "llama", "target": "llama-hf"})
    job = graftwerk.wait(job.id)
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

import httpx
from pydantic import ValidationError

from graftwerk.events import Event, read_events
from graftwerk.models import ApiError, Job, JsonObject, Progress, UnreachableError

DEFAULT_URL = "http://127.0.0.1:8000"
PATIENCE = 15
"""How often a job is asked for in vain, with a pause in between, before the service counts as gone."""
POLL_SECONDS = 2.0
TIMEOUT = httpx.Timeout(60, connect=10)
STREAM_TIMEOUT = httpx.Timeout(60, connect=10, read=45)
"""A stream that is silent for longer than three keep-alives is dead."""


class Graftwerk:
    """A service at a URL. Methods raise `ApiError` where it refuses and `UnreachableError` where it is not there."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._pause = pause
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=TIMEOUT,
                transport=transport or httpx.HTTPTransport(retries=2),
                # a proxy of the environment cannot see this machine's loopback
                trust_env=not _is_loopback(self.url),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise UnreachableError(
                f"cannot use {url!r}: {error}",
                "A URL looks like http://127.0.0.1:8000, a key is plain ASCII.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()

    def submit(self, request: JsonObject) -> Job:
        """Queues a job. The request carries a key, so that a repeated transmission makes no second job."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._one_job("POST", "/api/jobs", json=request, headers=headers)

    def plan(self, request: JsonObject) -> JsonObject:
        """What `submit` would do: what is read and written, memory and disk needed, warnings."""
        return self._object("POST", "/api/jobs", json=request, params={"dry_run": "true"})

    def job(self, job_id: str) -> Job:
        """One job as it stands."""
        return self._one_job("GET", _job_path(job_id))

    def jobs(self, *, kind: str | None = None, status: str | None = None, limit: int = 20) -> list[Job]:
        """The newest jobs first."""
        given = {"kind": kind, "status": status, "limit": str(limit)}
        params = {name: value for name, value in given.items() if value is not None}
        return [self._as_job(item) for item in self._items("/api/jobs", "jobs", params)]

    def cancel(self, job_id: str) -> Job:
        """Asks for a job to be ended; a running one ends a moment later."""
        return self._one_job("POST", f"{_job_path(job_id)}/cancel")

    def retry(self, job_id: str) -> Job:
        """A new job with the request of an ended one."""
        return self._one_job("POST", f"{_job_path(job_id)}/retry")

    def delete(self, job_id: str) -> None:
        """Forgets an ended job."""
        self._send("DELETE", _job_path(job_id))

    def log(self, job_id: str) -> str:
        """The lines that a job has written."""
        return self._send("GET", f"{_job_path(job_id)}/log").text

    def save_results(self, job_id: str, format: Literal["lines", "predictions"], file: Path) -> None:
        """Copies what a job with a file of prompts has written into a local file; whole, or not at all."""
        path = f"{_job_path(job_id)}/results"
        part = file.with_name(f"{file.name}.part")
        try:
            with self._http.stream(
                "GET", path, params={"format": format}, timeout=STREAM_TIMEOUT
            ) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                with part.open("wb") as written:
                    for piece in response.iter_bytes():
                        written.write(piece)
        except httpx.HTTPError as error:
            raise UnreachableError(f"the download from {self.url} broke ({error})", "Try again.") from error
        part.replace(file)

    def models(self) -> list[JsonObject]:
        """What is on the shelf."""
        return self._items("/api/models", "models", {})

    def model(self, name: str) -> JsonObject:
        """All that is known of one model."""
        return self._object("GET", _model_path(name))

    def delete_model(self, name: str) -> None:
        """Takes a model off the volume; refused while a job needs it."""
        self._send("DELETE", _model_path(name))

    def is_ready(self) -> bool:
        """Whether Redis, the volume and a worker answer the service."""
        try:
            self._send("GET", "/readyz")
        except (ApiError, UnreachableError):
            return False
        return True

    def follow(self, job_id: str, *, on_text: Callable[[JsonObject], None] | None = None) -> Iterator[Job]:
        """The job each time that something changes, until it has ended.

        Args:
            on_text: called with each piece of text that the job tells of while it writes.

        Reads the event stream; when that breaks, asks for the job itself and takes the stream up again after the
        last event that it has seen.
        """
        job, last_id, failures = None, "", 0
        while True:
            try:
                for event in self._events(job_id, last_id):
                    last_id, failures = event.id or last_id, 0
                    if event.name == "token":
                        if on_text is not None:
                            on_text(json.loads(event.data))
                        continue
                    job = self._changed(job, event)
                    if job is not None:
                        yield job
                    if job is not None and job.ended:
                        return
            except (httpx.TransportError, httpx.StreamError):
                pass
            try:
                job = self.job(job_id)
            except (ApiError, UnreachableError) as error:
                failures += 1
                if failures >= PATIENCE or not _may_pass(error):
                    raise
            else:
                yield job
                if job.ended:
                    return
            self._pause(POLL_SECONDS)

    def wait(self, job_id: str) -> Job:
        """The job when it has ended."""
        *_, job = self.follow(job_id)
        return job

    def _changed(self, job: Job | None, event: Event) -> Job | None:
        if event.name == "status":
            return self._as_job(json.loads(event.data))
        if event.name == "progress" and job is not None:
            progress = json.loads(event.data)["progress"]
            return job.model_copy(update={"progress": progress and Progress.model_validate(progress)})
        return job

    def _events(self, job_id: str, last_id: str) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        path = f"{_job_path(job_id)}/events"
        with self._http.stream("GET", path, headers=headers, timeout=STREAM_TIMEOUT) as response:
            if response.is_success:
                yield from read_events(response.iter_lines())

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **content)
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            hint = "Start it with `graftwerk serve`, or name its address with --url or GRAFTWERK_URL."
            raise UnreachableError(f"no Graftwerk answers at {self.url} ({error})", hint) from error
        except UnicodeEncodeError as error:
            found = f"the request holds {error.object[error.start]!r}, half a character"
            raise ApiError(
                "invalid_text", found, "Type the text again, or save the file as UTF-8."
            ) from error
        if not response.is_success:
            raise _refusal(response)
        return response

    def _one_job(self, method: str, path: str, **content: Any) -> Job:
        return self._as_job(self._json(method, path, **content))

    def _as_job(self, answer: object) -> Job:
        try:
            return Job.model_validate(answer)
        except ValidationError as error:
            raise self._stranger() from error

    def _json(self, method: str, path: str, **content: Any) -> object:
        response = self._send(method, path, **content)
        try:
            return response.json()
        except ValueError as error:
            raise self._stranger() from error

    def _object(self, method: str, path: str, **content: Any) -> JsonObject:
        answer = self._json(method, path, **content)
        if not isinstance(answer, dict):
            raise self._stranger()
        return answer

    def _items(self, path: str, key: str, params: dict[str, str]) -> list[JsonObject]:
        items = self._object("GET", path, params=params).get(key)
        if not isinstance(items, list):
            raise self._stranger()
        return items

    def _stranger(self) -> UnreachableError:
        return UnreachableError(
            f"{self.url} answers, but not as Graftwerk does", "Check the address: --url or GRAFTWERK_URL."
        )


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")


def _job_path(job_id: str) -> str:
    return f"/api/jobs/{quote(job_id, safe='')}"


def _model_path(name: str) -> str:
    return f"/api/models/{quote(name, safe='')}"


def _may_pass(error: ApiError | UnreachableError) -> bool:
    """Whether the same question may be answered a moment later."""
    return isinstance(error, UnreachableError) or error.status >= 500 or error.status == 429


def _refusal(response: httpx.Response) -> ApiError:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or problem.get("title") or response.reason_phrase
    code = problem.get("code") or f"http_{response.status_code}"
    return ApiError(code, detail, problem.get("hint") or "", status=response.status_code)
