"""Models over HTTP: list, summary, files, archive, deletion."""

import io
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
    "path", ["absent.json", "../secret.json", "%2e%2e/secret.json", "..%2fsecret.json", "/etc/passwd", "a%00b", "."]
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
    response = client.get("/api/models/zh/archive")
    assert response.mimetype == "application/x-tar"
    assert response.headers["Content-Disposition"] == 'attachment; filename="zh.tar"'
    with tarfile.open(fileobj=io.BytesIO(response.data)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        contents = {name: stream.read() for name, stream in files.items() if stream}
    assert contents == {
        "zh/adapter_config.json": b'{"r": 8}',
        "zh/page.html": b"<script>alert(1)</script>",
        f"zh/shards/{'long' * 50}.bin": bytes(range(256)) * 5,
    }


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
