"""Imports from a hub that are refused when they are submitted, and by the worker."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.errors import (
    GraftwerkError,
    HubDisabled,
    HubGated,
    HubNotFound,
    HubUnreachable,
    InvalidRequest,
    UnsupportedFormat,
)
from tests.api_client import client_of, problem
from tests.contract.hub_imports import asked, run
from tests.contract.hub_models import FILES
from tests.hub_server import HubServer


def gated(hub: HubServer) -> None:
    hub.repos["org/name"].gated = True


def gone(hub: HubServer) -> None:
    del hub.repos["org/name"]


def private(hub: HubServer) -> None:
    hub.repos["org/name"].private = True


def ill(hub: HubServer) -> None:
    hub.failing = 500


def crowded(hub: HubServer) -> None:
    hub.failing = 429


def foreign(hub: HubServer) -> None:
    hub.repos["org/name"].commit({**FILES, "config.json": b'{"model_type": "whisper"}'})


def quantized(hub: HubServer) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    hub.repos["org/name"].commit({**FILES, "config.json": json.dumps(config).encode()})


def damaged(hub: HubServer) -> None:
    hub.repos["org/name"].commit({**FILES, "config.json": b"{"})


def escaping(hub: HubServer) -> None:
    hub.repos["org/name"].commit({**FILES, "../outside": b"out"})


REFUSED = [
    (gated, {}, HubGated, 403, "hub_gated"),
    (gone, {}, HubNotFound, 404, "hub_not_found"),
    (private, {}, HubNotFound, 404, "hub_not_found"),
    (None, {"revision": "v9"}, HubNotFound, 404, "hub_not_found"),
    (ill, {}, HubUnreachable, 503, "hub_unreachable"),
    (crowded, {}, HubUnreachable, 503, "hub_unreachable"),
    (foreign, {}, UnsupportedFormat, 422, "unsupported_format"),
    (quantized, {}, UnsupportedFormat, 422, "unsupported_format"),
    (damaged, {}, GraftwerkError, 422, "unreadable_file"),
    (escaping, {}, GraftwerkError, 422, "invalid_name"),
    (None, {"files": ["*.ggml"]}, InvalidRequest, 422, "invalid_request"),
    (None, {"files": ["*.safetensors"]}, UnsupportedFormat, 422, "unsupported_format"),
]


@pytest.mark.parametrize(
    ("fault", "source", "error", "status", "code"),
    REFUSED,
    ids=[f"{fault.__name__ if fault else 'asked'} {source}" for fault, source, *_ in REFUSED],
)
def test_refused_when_it_is_submitted_and_by_the_worker(
    volume: Path,
    hub: HubServer,
    fault: Any,
    source: dict[str, Any],
    error: type[Exception],
    status: int,
    code: str,
) -> None:
    if fault is not None:
        fault(hub)
    client = client_of(volume, hub_enabled=True, hf_endpoint=hub.url)
    found = problem(client.post("/api/jobs", json=asked(**source)), status, code)
    assert found["hint"] or code == "invalid_name"
    with pytest.raises(error) as caught:
        run(volume, hub, asked(**source))
    assert caught.value.code == code  # type: ignore[attr-defined]
    assert not hub.downloads()


def test_off_unless_the_settings_turn_it_on(volume: Path, hub: HubServer) -> None:
    client = client_of(volume, hf_endpoint=hub.url)
    problem(client.post("/api/jobs", json=asked()), 422, "hub_disabled")
    with pytest.raises(HubDisabled):
        run(volume, hub, settings={"hub_enabled": False})
    assert not hub.heard


def test_a_hub_that_does_not_answer_is_given_up(
    volume: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.models.hub.SUBMISSION_SECONDS", 0.2)
    hub.silent = True
    client = client_of(volume, hub_enabled=True, hf_endpoint=hub.url)
    found = problem(client.post("/api/jobs", json=asked()), 503, "hub_unreachable")
    assert "no answer within 0.2 s" in found["detail"]
