"""The tus protocol: https://tus.io/protocols/resumable-upload, version 1.0.0."""

import fcntl
import hashlib
import io
import os
import shutil
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from fakeredis import FakeRedis, FakeServer
from flask.testing import FlaskClient

from api.body_stream import IDLE_SECONDS
from services.models.store import ModelStore
from services.models.uploads import SETTLE_SECONDS
from tests.api_client import client_of, problem
from tests.tus import BYTES, TUS, checksum, create, metadata, offset_of, patch, upload

pytestmark = pytest.mark.disable_socket

CONTENT = bytes(range(256)) * 700  # more than two pieces


@pytest.fixture(scope="module")
def shared_client(tmp_path_factory: pytest.TempPathFactory) -> tuple[FlaskClient, Path]:
    volume = tmp_path_factory.mktemp("volume")
    return client_of(volume, upload_limit_bytes=1_000_000, upload_quota_bytes=1_500_000), volume


@pytest.fixture
def volume(shared_client: tuple[FlaskClient, Path]) -> Path:
    shutil.rmtree(shared_client[1] / ".uploads", ignore_errors=True)
    return shared_client[1]


@pytest.fixture
def client(shared_client: tuple[FlaskClient, Path], volume: Path) -> FlaskClient:
    return shared_client[0]


@pytest.fixture
def url(client: FlaskClient) -> str:
    return str(create(client, len(CONTENT), "model.bin").headers["Location"])


def data_of(volume: Path, url: str) -> Path:
    return volume / ".uploads" / url.rpartition("/")[2] / "data"


# ---- discovery and versions ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/uploads", "/api/uploads/00000000000000000000000000000000"])
def test_options_names_versions_extensions_algorithms_and_the_limit(client: FlaskClient, path: str) -> None:
    response = client.options(path)
    assert (response.status_code, response.data) == (204, b"")
    found = {name: response.headers[name] for name in ("Tus-Resumable", "Tus-Version", "Tus-Max-Size")}
    assert found == {"Tus-Resumable": "1.0.0", "Tus-Version": "1.0.0", "Tus-Max-Size": "1000000"}
    assert set(response.headers["Tus-Extension"].split(",")) == {
        "creation", "creation-with-upload", "expiration", "checksum", "termination",
    }  # fmt: skip
    assert set(response.headers["Tus-Checksum-Algorithm"].split(",")) == {"sha1", "sha256", "md5"}


@pytest.mark.parametrize("version", [{}, {"Tus-Resumable": "0.2.2"}])
@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
def test_another_version_is_412_and_changes_nothing(
    client: FlaskClient, url: str, method: str, version: dict[str, str]
) -> None:
    headers = {"Content-Type": BYTES["Content-Type"], "Upload-Offset": "0", **version}
    response = client.open(url, method=method, headers=headers, data=b"" if method == "HEAD" else b"abc")
    assert (response.status_code, response.headers["Tus-Version"]) == (412, "1.0.0")
    assert offset_of(client, url) == 0


# ---- creation -----------------------------------------------------------------------------------------


def test_an_upload_is_created_with_its_address_and_its_end(client: FlaskClient) -> None:
    response = create(client, 5, "a.bin")
    assert (response.status_code, response.headers["Upload-Offset"]) == (201, "0")
    head = client.head(response.headers["Location"], headers=TUS)
    assert (head.status_code, head.headers["Upload-Length"], head.headers["Cache-Control"]) == (
        200,
        "5",
        "no-store",
    )
    assert head.headers["Upload-Metadata"] == metadata(filename="a.bin")
    left = parsedate_to_datetime(head.headers["Upload-Expires"]).timestamp() - time.time()
    assert 86000 < left <= 86401


@pytest.mark.parametrize("given", ["", "is_public", "filename ,caption IA=="])
def test_metadata_may_be_empty_and_keys_may_lack_values(client: FlaskClient, given: str) -> None:
    response = create(client, 5, **{"Upload-Metadata": given})
    assert response.status_code == 201
    assert client.get(response.headers["Location"]).get_json()["filename"] is None


def test_the_creation_may_carry_the_first_bytes(client: FlaskClient) -> None:
    headers = {
        **BYTES,
        "Upload-Length": str(len(CONTENT)),
        "Upload-Checksum": checksum("sha256", CONTENT[:9]),
    }
    response = client.post("/api/uploads", headers=headers, data=CONTENT[:9])
    assert (response.status_code, response.headers["Upload-Offset"]) == (201, "9")
    assert offset_of(client, response.headers["Location"]) == 9


def test_a_creation_whose_bytes_are_refused_leaves_nothing(client: FlaskClient, volume: Path) -> None:
    headers = {**BYTES, "Upload-Length": "9", "Upload-Checksum": checksum("sha256", b"other")}
    problem(client.post("/api/uploads", headers=headers, data=CONTENT[:9]), 460, "checksum_mismatch")
    problem(
        client.post("/api/uploads", headers={**BYTES, "Upload-Length": "9"}, data=b"0123456789"),
        413,
        "upload_too_large",
    )
    assert [path.name for path in (volume / ".uploads").iterdir()] == [".lock"]


@pytest.mark.parametrize("length", [None, "", "-1", "1.5", "ten", "１０"])
def test_a_length_that_is_not_a_number_is_400(client: FlaskClient, length: str | None) -> None:
    headers = TUS if length is None else {**TUS, "Upload-Length": length}
    assert (
        "Upload-Length"
        in problem(client.post("/api/uploads", headers=headers), 400, "malformed_request")["detail"]
    )


@pytest.mark.parametrize(
    "filename", ["../x", "a/../../x", "/etc/passwd", "C:\\x", "..\\x", "a\0b", "x" * 256, "a/" * 600 + "b", "/"]
)  # fmt: skip
def test_a_filename_that_leaves_the_model_is_refused(
    client: FlaskClient, volume: Path, filename: str
) -> None:
    problem(create(client, 5, filename), 422, "invalid_name")
    assert not (volume / ".uploads").exists()


@pytest.mark.parametrize(
    "given", ["filename !!!!", "filename /w==", "filename YQ==,filename YQ==", "sha256 YWJj"]
)
def test_metadata_that_cannot_be_read_are_400(client: FlaskClient, given: str) -> None:
    problem(create(client, 5, **{"Upload-Metadata": given}), 400, "malformed_request")


@pytest.mark.parametrize("name", ["Upload-Concat", "Upload-Defer-Length"])
def test_extensions_that_are_not_offered_are_refused_by_name(client: FlaskClient, name: str) -> None:
    assert name in problem(create(client, 5, **{name: "partial"}), 422, "unsupported_option")["detail"]


# ---- limits -------------------------------------------------------------------------------------------


def test_one_upload_may_have_as_many_bytes_as_the_limit(client: FlaskClient) -> None:
    assert create(client, 1_000_000).status_code == 201
    found = problem(create(client, 1_000_001), 413, "upload_too_large")
    assert "1000001" in found["detail"]
    assert "1000000" in found["detail"]


def test_unfinished_uploads_share_a_quota(client: FlaskClient) -> None:
    first = create(client, 900_000).headers["Location"]
    problem(create(client, 600_001), 507, "upload_quota_exceeded")
    patch(client, first, 0, bytes(900_000))
    assert create(client, 600_001).status_code == 201, "a finished upload does not count"


def test_an_upload_that_does_not_fit_on_the_volume_is_refused(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, volume: Path
) -> None:
    free = os.statvfs_result((4096, 4096, 10**6, 10**6, 250, 10**6, 10**6, 10**6, 0, 255))  # 1,024,000 bytes
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    assert create(client, 624_000).status_code == 201
    found = problem(create(client, 400_001), 507, "disk_full")
    assert "other uploads need 624000" in found["detail"]
    assert create(client, 400_000).status_code == 201


def test_bytes_that_jobs_have_reserved_are_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis = FakeRedis(server=FakeServer())
    redis.hset("graftwerk:room", "some-job", 100)
    free = os.statvfs_result((1, 1, 500, 500, 500, 500, 500, 500, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    client = client_of(tmp_path, redis=redis)
    problem(create(client, 401), 507, "disk_full")
    assert create(client, 400).status_code == 201


# ---- bytes --------------------------------------------------------------------------------------------


def test_bytes_arrive_in_any_number_of_requests(client: FlaskClient, url: str, volume: Path) -> None:
    for start in range(0, len(CONTENT), 70_001):
        response = patch(client, url, start, CONTENT[start : start + 70_001])
        end = min(start + 70_001, len(CONTENT))
        assert (response.status_code, response.headers["Upload-Offset"]) == (204, str(end))
        assert "Upload-Expires" in response.headers
    assert data_of(volume, url).read_bytes() == CONTENT
    state = client.get(url).get_json()
    assert (state["received_bytes"], state["size_bytes"], state["filename"]) == (
        len(CONTENT),
        len(CONTENT),
        "model.bin",
    )


def test_every_process_can_continue_an_upload(client: FlaskClient, url: str, volume: Path) -> None:
    patch(client, url, 0, CONTENT[:1000])
    other = client_of(volume)
    assert patch(other, url, 1000, CONTENT[1000:]).status_code == 204
    assert data_of(volume, url).read_bytes() == CONTENT


def test_a_method_may_travel_in_a_header(client: FlaskClient, url: str) -> None:
    headers = {**BYTES, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert client.post(url, headers=headers, data=b"abc").status_code == 204
    assert offset_of(client, url) == 3
    assert client.post(url, headers={**TUS, "X-HTTP-Method-Override": "DELETE"}).status_code == 204
    assert client.head(url, headers=TUS).status_code == 404
    assert client.post(url, headers=TUS).status_code == 405


def test_a_wrong_offset_is_409_and_changes_nothing(client: FlaskClient, url: str) -> None:
    patch(client, url, 0, b"abc")
    for offset in (0, 2, 4):
        found = problem(patch(client, url, offset, b"def"), 409, "wrong_offset")
        assert "3" in found["detail"]
    assert offset_of(client, url) == 3


@pytest.mark.parametrize("offset", ["", "-1", "x"])
def test_an_offset_that_is_not_a_number_is_400(client: FlaskClient, url: str, offset: str) -> None:
    problem(patch(client, url, offset, b"def"), 400, "malformed_request")


def test_bytes_need_their_media_type(client: FlaskClient, url: str) -> None:
    headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/octet-stream"}
    problem(client.patch(url, headers=headers, data=b"abc"), 415, "unsupported_media_type")


def test_more_bytes_than_announced_are_413_and_dropped(client: FlaskClient, url: str) -> None:
    patch(client, url, 0, CONTENT[:-5])
    problem(patch(client, url, len(CONTENT) - 5, b"123456"), 413, "upload_too_large")
    assert offset_of(client, url) == len(CONTENT) - 5


def test_more_bytes_than_announced_without_a_length_are_dropped_too(client: FlaskClient, url: str) -> None:
    response = client.patch(
        url,
        headers={**BYTES, "Upload-Offset": "0"},
        input_stream=io.BytesIO(CONTENT + b"x"),
        environ_overrides={"wsgi.input_terminated": True},
    )
    problem(response, 413, "upload_too_large")
    assert offset_of(client, url) == 0


def test_bytes_before_a_broken_connection_are_kept(client: FlaskClient, url: str, volume: Path) -> None:
    length = {"CONTENT_LENGTH": str(len(CONTENT))}
    response = client.patch(
        url, headers={**BYTES, "Upload-Offset": "0"}, input_stream=io.BytesIO(CONTENT[:100_000]), environ_overrides=length
    )  # fmt: skip
    assert response.status_code == 400
    assert offset_of(client, url) == 100_000
    assert patch(client, url, 100_000, CONTENT[100_000:]).status_code == 204
    assert data_of(volume, url).read_bytes() == CONTENT


class Breaking(io.BytesIO):
    """A body whose connection is reset after its bytes; the server still has the last ones."""

    def __init__(self, content: bytes, buffered: bytes) -> None:
        super().__init__(content)
        self.steps = [ConnectionResetError(), buffered, ConnectionResetError()]

    def read(self, size: int | None = -1) -> bytes:
        if piece := super().read(size):
            return piece
        step = self.steps.pop(0)
        if isinstance(step, bytes):
            return step
        raise step


def test_bytes_that_the_server_still_buffers_when_a_connection_is_reset_are_kept(
    client: FlaskClient, url: str
) -> None:
    response = client.patch(
        url,
        headers={**BYTES, "Upload-Offset": "0"},
        input_stream=Breaking(CONTENT[:100_000], CONTENT[100_000:100_007]),
        environ_overrides={"wsgi.input_terminated": True, "CONTENT_LENGTH": str(len(CONTENT))},
    )
    assert response.status_code == 400
    assert offset_of(client, url) == 100_007


class Silent(io.BytesIO):
    """A body that falls silent after its bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if piece := super().read(size):
            return piece
        raise TimeoutError


class Socket:
    """A connection that records the timeouts that are set."""

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []

    def gettimeout(self) -> None:
        return None

    def settimeout(self, seconds: float | None) -> None:
        self.timeouts.append(seconds)


def test_a_silent_connection_counts_as_broken(client: FlaskClient, url: str) -> None:
    connection = Socket()
    response = client.patch(
        url,
        headers={**BYTES, "Upload-Offset": "0"},
        input_stream=Silent(CONTENT[:70_000]),
        environ_overrides={
            "wsgi.input_terminated": True, "CONTENT_LENGTH": str(len(CONTENT)), "gunicorn.socket": connection,
        },
    )  # fmt: skip
    assert response.status_code == 400
    assert connection.timeouts == [IDLE_SECONDS, None]
    assert offset_of(client, url) == 70_000
    assert patch(client, url, 70_000, b"abc").status_code == 204


def test_one_request_at_a_time_writes_to_an_upload(client: FlaskClient, url: str, volume: Path) -> None:
    with data_of(volume, url).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        problem(patch(client, url, 0, b"abc"), 423, "upload_locked")
        problem(client.delete(url, headers=TUS), 423, "upload_locked")
        started = time.monotonic()
        assert offset_of(client, url) == 0
        assert time.monotonic() - started >= SETTLE_SECONDS, "it waits a moment for the other request to end"
    assert patch(client, url, 0, b"abc").status_code == 204


# ---- checksums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
def test_the_bytes_of_a_wrong_checksum_are_dropped(
    client: FlaskClient, url: str, algorithm: str, volume: Path
) -> None:
    right = {"Upload-Checksum": checksum(algorithm, CONTENT[:100_000])}
    assert patch(client, url, 0, CONTENT[:100_000], **right).status_code == 204
    found = problem(patch(client, url, 100_000, CONTENT[100_000:], **right), 460, "checksum_mismatch")
    assert "100000" in found["detail"]
    assert offset_of(client, url) == 100_000
    assert data_of(volume, url).read_bytes() == CONTENT[:100_000]


@pytest.mark.parametrize("given", ["sha512 AAAA", "sha1", "sha1 !!!!", "sha1 AAAA", "AAAA"])
def test_a_checksum_that_cannot_be_read_is_400(client: FlaskClient, url: str, given: str) -> None:
    problem(patch(client, url, 0, b"abc", **{"Upload-Checksum": given}), 400, "malformed_request")
    assert offset_of(client, url) == 0


# ---- the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upload_id", ["0" * 32, "..", "x", "%00", "0" * 300])
def test_an_unknown_upload_is_404(client: FlaskClient, upload_id: str) -> None:
    url = f"/api/uploads/{upload_id}"
    assert client.head(url, headers=TUS).status_code == 404
    for response in (patch(client, url, 0, b"abc"), client.delete(url, headers=TUS), client.get(url)):
        assert response.status_code == 404


def test_a_terminated_upload_is_gone(client: FlaskClient, url: str, volume: Path) -> None:
    assert client.delete(url, headers=TUS).status_code == 204
    problem(client.get(url), 404, "upload_not_found")
    assert not data_of(volume, url).parent.exists()


def test_an_upload_expires_some_time_after_its_last_bytes(tmp_path: Path) -> None:
    client = client_of(tmp_path, upload_retention_seconds=100)
    uploads = ModelStore(tmp_path).uploads
    old, new, needed = (str(create(client, 9).headers["Location"]) for _ in range(3))
    for url in (old, new, needed):
        os.utime(data_of(tmp_path, url), (time.time() - 101, time.time() - 101))
    problem(client.get(new), 404, "upload_not_found")
    os.utime(data_of(tmp_path, new), (time.time() - 90, time.time() - 90))
    assert patch(client, new, 0, b"abc").status_code == 204
    old_id, needed_id = old.rpartition("/")[2], needed.rpartition("/")[2]
    assert uploads.sweep({needed_id}) == [old_id]
    assert not data_of(tmp_path, old).parent.exists()
    assert [offset_of(client, url) for url in (new, needed)] == [3, 0]


def test_an_expired_upload_that_a_request_writes_to_stays(
    client: FlaskClient, url: str, volume: Path
) -> None:
    os.utime(data_of(volume, url), (0, 0))
    with data_of(volume, url).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert ModelStore(volume).uploads.sweep(()) == []
    assert data_of(volume, url).exists()


def test_what_a_killed_process_left_of_an_upload_is_removed_after_an_hour(
    client: FlaskClient, url: str, volume: Path
) -> None:
    for name, age in (("a" * 32, 3700), ("b" * 32, 0)):
        folder = volume / ".uploads" / name
        folder.mkdir()
        os.utime(folder, (time.time() - age, time.time() - age))
    ModelStore(volume).uploads.sweep(())
    left = {path.name for path in (volume / ".uploads").iterdir()}
    assert left == {url.rpartition("/")[2], "b" * 32, ".lock"}


def test_uploads_are_invisible_among_the_models(client: FlaskClient) -> None:
    upload(client, CONTENT, "config.json")
    assert client.get("/api/models").get_json() == {"models": []}
    assert client.get("/api/models/.uploads").status_code == 404


# ---- keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "status"), [("read", 403), ("submit", 201)])
def test_uploads_need_the_role_submit(tmp_path: Path, role: str, status: int) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{hashlib.sha256(b'k').hexdigest()} {role} laptop\n")
    client = client_of(tmp_path / "volume", api_keys_file=keys)
    assert create(client, 5).status_code == 401
    key = {"Authorization": "Bearer k"}
    response = create(client, 5, **key)
    assert response.status_code == status
    url = response.headers.get("Location", f"/api/uploads/{'0' * 32}")
    assert client.head(url, headers=TUS | key).status_code == (200 if status == 201 else 403)
    assert client.delete(url, headers=TUS | key).status_code == (204 if status == 201 else 403)
