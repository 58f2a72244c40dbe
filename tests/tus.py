"""Requests of the tus protocol as the tests send them."""

import base64
import hashlib
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}


def metadata(**pairs: str) -> str:
    """Returns the value of `Upload-Metadata`."""
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())


def checksum(algorithm: str, content: bytes) -> str:
    """Returns the value of `Upload-Checksum`."""
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


def create(client: FlaskClient, size: object, filename: str | None = None, **headers: str) -> TestResponse:
    """Creates an upload and returns the response."""
    named = {} if filename is None else {"Upload-Metadata": metadata(filename=filename)}
    return client.post("/api/uploads", headers={**TUS, "Upload-Length": str(size), **named, **headers})


def patch(client: FlaskClient, url: str, offset: object, content: bytes, **headers: str) -> TestResponse:
    """Sends bytes of an upload and returns the response."""
    return client.patch(url, headers={**BYTES, "Upload-Offset": str(offset), **headers}, data=content)


def offset_of(client: FlaskClient, url: str) -> int:
    """Returns the offset of an upload."""
    return int(client.head(url, headers=TUS).headers["Upload-Offset"])


def upload(client: FlaskClient, content: bytes, filename: str | None, **more: Any) -> str:
    """Uploads a file in one request and returns the id of the upload."""
    pairs = more if filename is None else {"filename": filename, **more}
    response = client.post(
        "/api/uploads",
        headers={**BYTES, "Upload-Length": str(len(content)), "Upload-Metadata": metadata(**pairs)},
        data=content,
    )
    assert response.status_code == 201, response.text
    return response.headers["Location"].rpartition("/")[2]
