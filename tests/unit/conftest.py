"""Fixtures of the client's tests."""

import httpx
import pytest
from graftwerk.commands import app
from typer.testing import CliRunner

from tests.client_service import Run, Service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """A fake service that every client of the test reaches."""
    service = Service()
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(service))
    for name in ("GRAFTWERK_URL", "GRAFTWERK_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return service


@pytest.fixture
def run(service: Service) -> Run:
    """Runs the `graftwerk` command with these arguments against the fake service."""
    return lambda *arguments, **more: CliRunner().invoke(app, arguments, **more)
