"""The API as a test client, on an in-memory Redis and a volume in a temporary folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fakeredis import FakeRedis, FakeServer
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api import create_app
from services.jobs.queue import JobQueue
from services.settings import Settings

Json = dict[str, Any]


def client_of(models_dir: Path, *, redis: Any = None, **changes: Any) -> FlaskClient:
    """Returns a client of an application with this volume; `changes` are settings."""
    settings = Settings(models_dir=models_dir, **changes)
    connection = redis if redis is not None else FakeRedis(server=FakeServer())
    return create_app(settings, queue=JobQueue(connection, settings)).test_client()


def import_request(models_dir: Path, target: str = "llama", **more: Any) -> Json:
    """Returns a request that passes every check, and puts its source on the volume."""
    source = models_dir / "incoming" / "llama"
    source.mkdir(parents=True, exist_ok=True)
    (source / "params.json").write_text('{"dim": 48}')
    return {"kind": "import", "source": {"path": "incoming/llama"}, "target": target, **more}


def put_model(models_dir: Path, name: str, files: Mapping[str, str] | None = None) -> Path:
    """Makes a folder on the volume with these texts as files."""
    folder = models_dir / name
    folder.mkdir(parents=True)
    for file, text in (files or {}).items():
        (folder / file).write_text(text)
    return folder


def problem(response: TestResponse, status: int, code: str) -> Json:
    """Returns the problem in a response, which must have this status and code."""
    assert response.mimetype == "application/problem+json", response.text
    found: Json = response.get_json()
    assert (response.status_code, found["status"], found["code"]) == (status, status, code), found
    assert set(found) == {"type", "title", "status", "code", "detail", "hint", "errors"}
    assert found["type"] == f"urn:graftwerk:error:{code}"
    assert found["title"]
    assert found["detail"]
    return found
