"""HTTP client of the other server: its models, its streams, its errors as ours."""

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
"""Request header from one Graftwerk to another, which then does not forward the request again."""

SERVICE_HEADER = "X-Graftwerk-Service"
"""Response header with the identity of the Graftwerk that lists its models."""

LIST_SECONDS = 5.0
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 600.0
"""Time without data after which a server counts as lost; a long prompt takes minutes on a CPU."""

HINT = "Set GENERATE_BACKEND_URL to the address of an OpenAI-compatible server."


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the other server; `dialect` is a key of `DIALECTS`, `server` the address without secrets."""

    id: str
    owned_by: str
    created: int
    dialect: str
    server: str


class Backend:
    """An OpenAI-compatible server that generates with the models that it serves."""

    def __init__(self, url: str, key: str | None, *, identity: Callable[[], str]) -> None:
        """`identity` returns the name by which this service recognizes itself."""
        self.url = url
        self.server = re.sub(r"//[^/@]*@", "//", url)
        self._identity = identity
        self._headers = {FORWARDED_HEADER: "1"} | ({"Authorization": f"Bearer {key}"} if key else {})

    @classmethod
    def of(cls, settings: Settings, identity: Callable[[], str]) -> "Backend | None":
        """Returns the server of the settings, None if they name none."""
        url = settings.generate_backend_url
        return None if url is None else cls(url, settings.backend_key, identity=identity)

    def models(self) -> Mapping[str, ServedModel]:
        """Returns the models that the server lists, by id, except those with an id that no request can name.

        Raises:
            NotReady: the server does not answer.
            InvalidSettings: it is this service itself, refuses our key, or does not speak OpenAI's API.
        """
        try:
            response = httpx.get(
                f"{self.url}/v1/models", headers=self._headers, timeout=LIST_SECONDS, trust_env=False
            )
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code == 404:
            raise InvalidSettings(f"{self.server} has no /v1/models.", HINT)
        if not response.is_success:
            raise self._error(response.status_code, response.text)
        service = response.headers.get(SERVICE_HEADER)
        if service is not None and service == self._identity():
            raise InvalidSettings(
                f"{self.server} is this service itself.",
                "Set GENERATE_BACKEND_URL to another server, or unset it.",
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
                f"{self.server}/v1/models is not a list of models: {text[:100]!r}.", HINT
            ) from error
        return {model.id: model for model in found if re.fullmatch(SERVED_NAME_PATTERN, model.id)}

    def client(self) -> httpx.AsyncClient:
        """Returns a client for streams; use it as a context manager."""
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=None)
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(headers=self._headers, timeout=timeout, limits=limits, trust_env=False)

    async def stream(
        self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[Chunk, None]:
        """Yields the chunks of one output as they arrive. Closing it closes the connection, and the server stops.

        Raises:
            NotReady: the server cannot be reached, is overloaded, or closed the stream early.
            ModelNotFound, PromptTooLong, InvalidRequest, InvalidSettings: the server refuses the request.
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
        raise NotReady(f"The stream of {self.server} ended early.", "Try again.")

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
            f"The generation server {self.server} does not answer: {type(error).__name__}: {error}.",
            "Start it, or unset GENERATE_BACKEND_URL.",
        )

    def _error(self, status: int, text: str) -> GraftwerkError:
        message, code = _message_and_code(text)
        said = f"{self.server} answered {status}: {message.removesuffix('.')}."
        if code == "context_length_exceeded":
            return PromptTooLong(said, "Shorten the prompt, or request fewer tokens.")
        if status in (401, 403):
            return InvalidSettings(said, "Set GENERATE_BACKEND_KEY to a key of that server.")
        if status == 404:
            return ModelNotFound(said, "GET /v1/models lists the models.")
        if status in (408, 425, 429) or status >= 500:
            return NotReady(said, "Try again.")
        return InvalidRequest(said)


def _message_and_code(text: str) -> tuple[str, str | None]:
    """Returns message and code of an error's body, in any of the forms that servers use."""
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
