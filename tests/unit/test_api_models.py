"""Models over HTTP: list, summary, files, archive, deletion."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.api_client import client_of, import_request, problem, put_model

pytestmark = pytest.mark.disable_socket


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    put_model(tmp_path, "zh", {"adapter_config.json": '{"r": 8}', "page.html": "<script>alert(1)</script>"})
    (tmp_path / "incoming").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    return client_of(tmp_path)


def test_the_models_on_the_volume_are_listed(client: FlaskClient) -> None:
    models = client.get("/api/models").get_json()["models"]
    assert [(model["name"], model["kind"]) for model in models] == [("zh", "adapter")]


def test_a_model_has_a_summary_and_its_problems(client: FlaskClient) -> None:
    model = client.get("/api/models/zh").get_json()
    assert (model["name"], model["kind"]) == ("zh", "adapter")
    assert [file["path"] for file in model["files"]] == ["adapter_config.json", "page.html"]
    assert model["problems"]


@pytest.mark.parametrize("name", ["absent", "ZH", "incoming", "results", ".staging", "..", "a b", "x" * 97])
def test_a_missing_model_is_404(client: FlaskClient, name: str) -> None:
    for response in (
        client.get(f"/api/models/{name}"),
        client.delete(f"/api/models/{name}"),
        client.get(f"/api/models/{name}/files/config.json"),
        client.get(f"/api/models/{name}/archive"),
    ):
        problem(response, 404, "model_not_found")


# ---- files --------------------------------------------------------------------------------------------


def test_a_file_is_sent_whole_or_in_part(client: FlaskClient) -> None:
    whole = client.get("/api/models/zh/files/adapter_config.json", buffered=True)
    assert (whole.status_code, whole.text, whole.mimetype) == (200, '{"r": 8}', "application/json")
    assert whole.headers["Accept-Ranges"] == "bytes"
    part = client.get(
        "/api/models/zh/files/adapter_config.json", headers={"Range": "bytes=1-3"}, buffered=True
    )
    assert (part.status_code, part.text) == (206, '"r"')
    assert part.headers["Content-Range"] == "bytes 1-3/8"


def test_a_range_behind_the_end_is_416_with_the_size(client: FlaskClient) -> None:
    response = client.get("/api/models/zh/files/adapter_config.json", headers={"Range": "bytes=8-"})
    problem(response, 416, "range_not_satisfiable")
    assert response.headers["Content-Range"] == "bytes */8"


def test_a_file_that_the_client_has_is_not_sent_again(client: FlaskClient) -> None:
    url = "/api/models/zh/files/adapter_config.json"
    etag = client.get(url, buffered=True).headers["ETag"]
    assert client.get(url, headers={"If-None-Match": etag}, buffered=True).status_code == 304


def test_no_file_is_run_by_a_browser(client: FlaskClient) -> None:
    response = client.get("/api/models/zh/files/page.html", buffered=True)
    assert response.mimetype == "application/octet-stream"
    assert response.headers["Content-Disposition"].startswith("attachment")
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["absent.json", "../secret.json", "%2e%2e/secret.json", "..%2fsecret.json", "/etc/passwd", "a%00b", ".", "adapter_config.json/../adapter_config.json", "adapter_config.json/x"]
)  # fmt: skip
def test_a_file_outside_the_model_is_not_sent(client: FlaskClient, path: str) -> None:
    response = client.get(f"/api/models/zh/files/{path}")
    assert response.status_code == 404
    assert "{}" not in response.text


def test_a_link_out_of_the_model_is_not_followed(client: FlaskClient, tmp_path: Path) -> None:
    (tmp_path / "zh" / "out.json").symlink_to(tmp_path / "secret.json")
    (tmp_path / "zh" / "round.json").symlink_to("round.json")
    (tmp_path / "zh" / "within.json").symlink_to("adapter_config.json")
    problem(client.get("/api/models/zh/files/out.json"), 404, "not_found")
    problem(client.get("/api/models/zh/files/round.json"), 404, "not_found")
    assert client.get("/api/models/zh/files/within.json", buffered=True).text == '{"r": 8}'


def test_the_archive_holds_every_file_under_the_name_of_the_model(
    client: FlaskClient, tmp_path: Path
) -> None:
    deep = tmp_path / "zh" / "shards"
    deep.mkdir()
    (deep / ("long" * 50 + ".bin")).write_bytes(bytes(range(256)) * 5)
    (tmp_path / "zh" / "out.json").symlink_to(tmp_path / "secret.json")
    response = client.get("/api/models/zh/archive", buffered=True)
    assert response.mimetype == "application/x-tar"
    assert response.content_length == len(response.data)
    assert response.headers["Content-Disposition"] == 'attachment; filename="zh.tar"'
    with tarfile.open(fileobj=io.BytesIO(response.data)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        contents = {name: stream.read() for name, stream in files.items() if stream}
    assert contents == {
        "zh/adapter_config.json": b'{"r": 8}',
        "zh/page.html": b"<script>alert(1)</script>",
        f"zh/shards/{'long' * 50}.bin": bytes(range(256)) * 5,
    }


ARCHIVE = "/api/models/zh/archive"


def test_the_archive_depends_on_names_and_contents_alone(client: FlaskClient, tmp_path: Path) -> None:
    first = client.get(ARCHIVE, buffered=True).data
    copied = tmp_path / "copied"
    for path in sorted((tmp_path / "zh").iterdir(), reverse=True):
        copied.mkdir(exist_ok=True)
        (copied / path.name).write_bytes(path.read_bytes())
    shutil.rmtree(tmp_path / "zh")
    os.utime(copied / "page.html", (5, 5))
    (copied / "page.html").chmod(0o600)
    copied.rename(tmp_path / "zh")
    assert client.get(ARCHIVE, buffered=True).data == first


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, 512), (510, 514), (512, 520), (519, 521), (100, 2500), (-1024, None), (-1, None), (1500, None)]
)  # fmt: skip
def test_any_part_of_the_archive_can_be_requested(client: FlaskClient, start: int, stop: int | None) -> None:
    whole = client.get(ARCHIVE, buffered=True)
    assert whole.headers["Accept-Ranges"] == "bytes"
    last = "" if stop is None else str(stop - 1)
    wanted = f"bytes={start}" if start < 0 else f"bytes={start}-{last}"
    part = client.get(ARCHIVE, headers={"Range": wanted}, buffered=True)
    expected = whole.data[start:stop]
    assert (part.status_code, part.data, part.content_length) == (206, expected, len(expected))
    begin = start % len(whole.data)
    assert part.headers["Content-Range"] == f"bytes {begin}-{begin + len(expected) - 1}/{len(whole.data)}"


def test_a_part_behind_the_end_of_the_archive_is_416_with_its_length(client: FlaskClient) -> None:
    length = client.head(ARCHIVE).content_length
    response = client.get(ARCHIVE, headers={"Range": f"bytes={length}-"})
    problem(response, 416, "range_not_satisfiable")
    assert response.headers["Content-Range"] == f"bytes */{length}"


@pytest.mark.parametrize("change", ["content", "time", "added", "removed", "replaced"])
def test_a_download_never_mixes_two_versions(client: FlaskClient, tmp_path: Path, change: str) -> None:
    whole = client.get(ARCHIVE, buffered=True)
    etag = whole.headers["ETag"]
    resumed = {"Range": "bytes=600-", "If-Range": etag}
    for headers in (resumed, {"Range": "bytes=600-", "If-Match": etag}):
        part = client.get(ARCHIVE, headers=headers, buffered=True)
        assert (part.status_code, part.data) == (206, whole.data[600:])
    assert client.get(ARCHIVE, headers={"If-None-Match": etag}, buffered=True).status_code == 304
    folder = tmp_path / "zh"
    match change:
        case "content":
            (folder / "page.html").write_text("other")
        case "time":
            os.utime(folder / "page.html", (5, 5))
        case "added":
            (folder / "new.txt").write_text("new")
        case "removed":
            (folder / "page.html").unlink()
        case "replaced":
            shutil.copytree(folder, tmp_path / "copied")
            shutil.rmtree(folder)
            (tmp_path / "copied").rename(folder)
    changed = client.get(ARCHIVE, headers=resumed, buffered=True)
    assert changed.status_code == 200
    assert changed.headers["ETag"] != etag
    with tarfile.open(fileobj=io.BytesIO(changed.data)) as archive:
        assert len(archive.getnames()) == {"added": 3, "removed": 1}.get(change, 2)
    for more in ({}, {"Range": "bytes=600-"}):
        problem(client.get(ARCHIVE, headers={"If-Match": etag, **more}), 412, "precondition_failed")


@pytest.mark.parametrize("change", ["replaced", "deleted", "shortened", "written"])
def test_a_download_whose_files_change_breaks_off(client: FlaskClient, tmp_path: Path, change: str) -> None:
    folder, big = tmp_path / "zh", tmp_path / "zh" / "weights.bin"
    big.write_bytes(bytes(3 * 2**20))
    (folder / "z.txt").write_text("the last one")
    blocks = client.get(ARCHIVE).iter_encoded()
    received = 0
    while received < 2**20:
        received += len(next(blocks))
    match change:
        case "replaced":
            shutil.copytree(folder, tmp_path / "copied")
            client.delete("/api/models/zh")
            (tmp_path / "copied").rename(folder)
        case "deleted":
            client.delete("/api/models/zh")
        case "shortened":
            os.truncate(big, 2**20)
        case "written":
            with big.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"x")
    with pytest.raises(OSError, match=r"weights\.bin (changed|shrank)|z\.txt"):
        list(blocks)


# ---- deleting -----------------------------------------------------------------------------------------


def test_a_model_is_deleted_with_its_files(client: FlaskClient, tmp_path: Path) -> None:
    response = client.delete("/api/models/zh")
    assert (response.status_code, response.data) == (204, b"")
    assert not (tmp_path / "zh").exists()
    problem(client.delete("/api/models/zh"), 404, "model_not_found")


def test_a_model_that_a_job_needs_stays_and_the_job_is_named(client: FlaskClient, tmp_path: Path) -> None:
    first = client.post("/api/jobs", json=import_request(tmp_path)).get_json()["id"]
    body = {"kind": "merge", "base": "llama", "adapters": ["zh"], "target": "merged", "after": [first]}
    second = client.post("/api/jobs", json=body).get_json()["id"]
    found = problem(client.delete("/api/models/zh"), 409, "model_in_use")
    assert second in found["detail"]
    assert first not in found["detail"]
    assert (tmp_path / "zh").is_dir()
