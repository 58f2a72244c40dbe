"""The other server itself: its list of models, its streams, its errors as ours."""

import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from services.backend.chunks import DONE, Chunk, parse_chunk
from services.errors import (
    GraftwerkError,
    InvalidRequest,
    InvalidSettings,
    ModelNotFound,
    NotReady,
    PromptTooLong,
)
from services.names import SERVED_NAME_PATTERN
from services.settings import Settings

FORWARDED_HEADER = "X-Graftwerk-Forwarded"
"""On what one Graftwerk asks of another: this one answers by itself, so that nothing goes in circles."""

SERVICE_HEADER = "X-Graftwerk-Service"
"""In the answer to such a question for the models: which Graftwerk it is."""

LIST_SECONDS = 5.0
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 600.0
"""A server that sends nothing for so long is taken for lost; reading a long prompt takes minutes on a CPU."""

HINT = "Is GENERATE_BACKEND_URL the address of an OpenAI-compatible server?"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the other server. `dialect` tells which settings it knows, `server` is its address without secrets."""

    id: str
    owned_by: str
    created: int
    dialect: str
    server: str


class Backend:
    """An OpenAI-compatible server that takes the generation with the models that it serves."""

    def __init__(self, url: str, key: str | None, *, identity: Callable[[], str]) -> None:
        """`identity` gives the name by which this service would know itself again."""
        self.url = url
        self.server = re.sub(r"//[^/@]*@", "//", url)
        self._identity = identity
        self._headers = {FORWARDED_HEADER: "1"} | ({"Authorization": f"Bearer {key}"} if key else {})

    @classmethod
    def of(cls, settings: Settings, identity: Callable[[], str]) -> "Backend | None":
        """The server that the settings name, if they do."""
        url = settings.generate_backend_url
        return None if url is None else cls(url, settings.backend_key, identity=identity)

    def models(self) -> Mapping[str, ServedModel]:
        """The models that it serves, by id; one whose id no request can name is left out.

        Raises:
            NotReady: it does not answer.
            InvalidSettings: it is this service itself, refuses our key, or is no such server.
        """
        try:
            response = httpx.get(
                f"{self.url}/v1/models", headers=self._headers, timeout=LIST_SECONDS, trust_env=False
            )
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code == 404:
            raise InvalidSettings(f"{self.server} has no /v1/models", HINT)
        if not response.is_success:
            raise self._error(response.status_code, response.text)
        service = response.headers.get(SERVICE_HEADER)
        if service is not None and service == self._identity():
            raise InvalidSettings(
                f"{self.server} is this service itself", "GENERATE_BACKEND_URL names another server, or none."
            )
        return self._parse_models(response.text, is_graftwerk=service is not None)

    def _parse_models(self, text: str, *, is_graftwerk: bool) -> Mapping[str, ServedModel]:
        try:
            found = [
                ServedModel(
                    id=str(item["id"]),
                    owned_by=str(item.get("owned_by") or "backend"),
                    created=int(item.get("created") or 0),
                    dialect="graftwerk" if is_graftwerk else str(item.get("owned_by")),
                    server=self.server,
                )
                for item in json.loads(text)["data"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidSettings(
                f"{self.server}/v1/models is no list of models: {text[:100]!r}", HINT
            ) from error
        return {model.id: model for model in found if re.fullmatch(SERVED_NAME_PATTERN, model.id)}

    def client(self) -> httpx.AsyncClient:
        """Connections for streams; use it as a context."""
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=None)
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(headers=self._headers, timeout=timeout, limits=limits, trust_env=False)

    async def stream(
        self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[Chunk, None]:
        """The chunks of one answer to what is posted, as they come. Closing it closes the connection, which ends the work there.

        Raises:
            NotReady: it cannot be reached, has too much to do, or broke off.
            ModelNotFound, PromptTooLong, InvalidRequest, InvalidSettings: it refuses.
        """
        try:
            async with client.stream("POST", f"{self.url}{path}", json=body) as response:
                if not response.is_success:
                    raise self._error(
                        response.status_code, (await response.aread()).decode("utf-8", "replace")
                    )
                async for line in response.aiter_lines():
                    data = line.removeprefix("data:").strip()
                    if data == DONE:
                        return
                    if line.startswith("data:"):
                        yield self._checked(parse_chunk(data))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        raise NotReady(f"the stream of {self.server} ended before its answer", "Try again.")

    def _checked(self, chunk: Chunk) -> Chunk:
        if chunk.error is not None:
            status = chunk.error.get("code")
            kind = str(chunk.error.get("type"))
            if not isinstance(status, int):
                status = 500 if "server" in kind or "internal" in kind.lower() else 400
            raise self._error(status, json.dumps({"error": chunk.error}))
        return chunk

    def _unreachable(self, error: httpx.TransportError) -> NotReady:
        return NotReady(
            f"the generation server {self.server} does not answer: {type(error).__name__}: {error}",
            "Start it, or unset GENERATE_BACKEND_URL.",
        )

    def _error(self, status: int, text: str) -> GraftwerkError:
        message, code = _said(text)
        said = f"{self.server} answered {status}: {message}"
        if code == "context_length_exceeded":
            return PromptTooLong(said, "Shorten the prompt, or ask for fewer tokens.")
        if status in (401, 403):
            return InvalidSettings(said, "Set GENERATE_BACKEND_KEY to a key of that server.")
        if status == 404:
            return ModelNotFound(said, "GET /v1/models lists what there is.")
        if status in (408, 425, 429) or status >= 500:
            return NotReady(said, "Try again.")
        return InvalidRequest(said)


def _said(text: str) -> tuple[str, str | None]:
    """Message and code of an error's body, whatever its shape."""
    try:
        body: Any = json.loads(text)
    except ValueError:
        return text[:500] or "nothing", None
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error)[:500], None
    message = error.get("message") or error.get("detail") or json.dumps(error)
    code = error.get("code")
    return str(message)[:500], code if isinstance(code, str) else None
