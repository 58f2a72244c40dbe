"""Requests to the API that are repeated while it is away, as a careful client sends them."""

import base64
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import SSEError, connect_sse

Json = dict[str, Any]

PATIENCE_SECONDS = 120.0
PAUSE_SECONDS = 0.5
AWAY = (429, 500, 502, 503, 504)
"""Statuses after which the same request is sent again; 500 is a problem all the same."""

TUS = {"Tus-Resumable": "1.0.0"}


class UnexpectedAnswerError(Exception):
    """Response that no fault explains."""


class RefusedError(Exception):
    """Refusal with a code of the service."""

    def __init__(self, response: httpx.Response) -> None:
        problem = response.json() if response.content else {}
        super().__init__(f"{response.status_code} {response.text[:300]}")
        self.code = str(problem.get("code", response.status_code))


class Api:
    """The API of the service under test; may be used from several threads. `server_errors` are its answers with 500."""

    def __init__(self, url: str) -> None:
        self.server_errors: list[str] = []
        self._http = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Returns the response of a request that may be repeated.

        Raises:
            UnexpectedAnswerError: the API is away for longer than two minutes.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        last = "no answer"
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                response = self._http.request(method, path, **more)
                last = f"{response.status_code} {response.text[:300]}"
                if response.status_code == 500:
                    self.server_errors.append(f"{method} {path}: {last}")
                if response.status_code not in AWAY:
                    return response
            time.sleep(PAUSE_SECONDS)
        raise UnexpectedAnswerError(f"{method} {path} for {PATIENCE_SECONDS:.0f} s: {last}")

    def job(self, job_id: str) -> Json:
        """Returns a job that must exist."""
        response = self.send("GET", f"/api/jobs/{job_id}")
        if response.status_code != 200:
            raise UnexpectedAnswerError(f"GET {job_id}: {response.status_code} {response.text[:300]}")
        return dict(response.json())

    def is_alive(self) -> bool:
        """Returns True if the API answers a probe within two seconds."""
        with suppress(httpx.TransportError):
            return self._http.get("/healthz", timeout=2).is_success
        return False

    def upload(self, path: Path) -> str:
        """Uploads a file by tus and returns the id of the upload; a break is continued where it ended.

        Raises:
            RefusedError: the service takes no upload, or has removed this one.
        """
        name = base64.b64encode(path.name.encode()).decode()
        headers = {
            **TUS,
            "Upload-Length": str(path.stat().st_size),
            "Upload-Metadata": f"filename {name}",
        }
        created = self.send("POST", "/api/uploads", headers=headers)
        if not created.is_success:
            raise RefusedError(created)
        address = created.headers["Location"].rpartition("/")[2]
        content = path.read_bytes()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (offset := self._offset(address)) < len(content):
            if time.monotonic() > deadline:
                raise UnexpectedAnswerError(f"upload {address}: stays at {offset} of {len(content)} bytes")
            with suppress(httpx.TransportError):
                self._http.patch(
                    f"/api/uploads/{address}",
                    content=content[offset:],
                    headers={
                        **TUS,
                        "Upload-Offset": str(offset),
                        "Content-Type": "application/offset+octet-stream",
                    },
                )
        return address

    def _offset(self, address: str) -> int:
        response = self.send("HEAD", f"/api/uploads/{address}", headers=TUS)
        if response.status_code != 200:
            raise RefusedError(response)
        return int(response.headers["Upload-Offset"])

    def events(self, job_id: str, last_id: str | None) -> Iterator[tuple[str, str, Json]]:
        """Yields id, name and data of a job's events until the connection ends, however it ends."""
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with (
            suppress(httpx.TransportError, SSEError),
            connect_sse(
                self._http, "GET", f"/api/jobs/{job_id}/events", headers=headers, timeout=30
            ) as source,
        ):
            for event in source.iter_sse():
                if event.data:
                    yield event.id, event.event, event.json()
