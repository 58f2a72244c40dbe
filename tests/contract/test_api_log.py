"""The API's log, as gunicorn writes it with our settings."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from graftwerk.local_service import free_port
from graftwerk.supervisor_config import api_arguments

from tests.redis_server import until

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(folder: Path, log_format: str) -> Iterator[str]:
    """A server with this setting, and no Redis; gives its address."""
    port = free_port()
    settings = {
        "GRAFTWERK_LOG_FORMAT": log_format,
        "GRAFTWERK_PORT": str(port),
        "GRAFTWERK_MODELS_DIR": str(folder / "models"),
        "GRAFTWERK_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *api_arguments()], env=os.environ | settings, cwd=ROOT, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: is_up(url), 60)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_all_lines_are_of_the_format_that_is_set(tmp_path: Path, log_format: str) -> None:
    with serving(tmp_path, log_format) as url:
        httpx.get(f"{url}/healthz?of=一", trust_env=False)
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    if log_format == "text":
        assert any(" INFO    gunicorn.access: 127.0.0.1 " in line for line in lines)
        assert all(line[:2] == "20" for line in lines), lines
        return
    found = [json.loads(line) for line in lines]
    assert {"gunicorn.error", "gunicorn.access"} <= {line["logger"] for line in found}
    (line,) = [entry for entry in found if "/healthz?of=" in entry["message"]]
    assert set(line) == {"time", "level", "logger", "message"}
    assert '" 200 ' in line["message"]
