"""The API's log, as gunicorn writes it with our settings."""

import json
from pathlib import Path

import httpx
import pytest

from tests.contract.api_server import api_server


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_all_lines_are_of_the_format_that_is_set(tmp_path: Path, log_format: str) -> None:
    with api_server(tmp_path, LOG_FORMAT=log_format) as server:
        httpx.get(f"{server.url}/openapi.json?kind=一", trust_env=False)
    lines = server.log.read_text(encoding="utf-8").splitlines()
    if log_format == "text":
        assert any(" INFO    gunicorn.access: 127.0.0.1 " in line for line in lines)
        assert all(line[:2] == "20" for line in lines), lines
        return
    found = [json.loads(line) for line in lines]
    assert {"gunicorn.error", "gunicorn.access"} <= {line["logger"] for line in found}
    (line,) = [entry for entry in found if "/openapi.json?kind=" in entry["message"]]
    assert set(line) == {"time", "level", "logger", "message"}
    assert '" 200 ' in line["message"]


def test_successful_probes_are_not_logged_and_failing_ones_are(tmp_path: Path) -> None:
    with api_server(tmp_path) as server:
        for path in ("/healthz", "/readyz"):
            httpx.get(f"{server.url}{path}", trust_env=False)
    lines = server.log.read_text(encoding="utf-8").splitlines()
    probes = [line for line in lines if "gunicorn.access" in line]
    assert len(probes) == 1, probes
    assert '/readyz HTTP/1.1" 503' in probes[0], "Redis is away"
