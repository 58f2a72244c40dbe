"""Imports of uploads: from the tus endpoint to the published model."""

import hashlib
import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis

from services.errors import DigestMismatch, GraftwerkError, UnsafeArchive, UnsupportedFormat
from services.jobs.queue import JobQueue
from services.kinds.import_ import ImportRequest
from services.models.manifest import read_manifest
from services.settings import Settings
from tests.api_client import client_of, problem
from tests.job_context import job_context
from tests.reference.tokenizer_files import sentencepiece_file
from tests.tus import TUS, create, patch, upload
from worker.janitor import Janitor
from worker.models import import_

TOKENIZER = sentencepiece_file(["<unk>", "<s>", "</s>", "a"])
PARAMS = b'{"dim": 48}'


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


def request_for(*ids: str, **more: Any) -> ImportRequest:
    return ImportRequest.model_validate(
        {"kind": "import", "source": {"upload": list(ids)}, "target": "made", **more}
    )


def run(volume: Path, *ids: str, **more: Any) -> None:
    import_.run(request_for(*ids, **more), job_context(volume))


def submit(client: FlaskClient, *ids: str, **more: Any) -> Any:
    return client.post("/api/jobs", json=request_for(*ids, **more).model_dump(mode="json"))


def zipped(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def uploads_left(volume: Path) -> list[str]:
    return sorted(path.name for path in (volume / ".uploads").iterdir() if path.is_dir())


# ---- made ---------------------------------------------------------------------------------------------


def test_uploads_together_make_one_folder_and_are_removed(client: FlaskClient, tmp_path: Path) -> None:
    ids = [
        upload(client, TOKENIZER, "my-model/tokenizer.model", sha256=sha256(TOKENIZER)),
        upload(client, PARAMS, "my-model/extra\\params.json"),
        upload(client, b"junk", "my-model/.DS_Store"),
    ]
    response = submit(client, *ids, sha256={"extra/params.json": sha256(PARAMS)})
    assert response.status_code == 202, response.text
    run(tmp_path, *ids, sha256={"extra/params.json": sha256(PARAMS)})
    made = tmp_path / "made"
    files = {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    manifest = files.pop("manifest.json")
    assert files == {"tokenizer.model": TOKENIZER, "extra/params.json": PARAMS}
    assert b"3 uploads" in manifest
    assert uploads_left(tmp_path) == []
    assert {oct(path.stat().st_mode)[-3:] for path in made.rglob("*") if path.is_file()} == {"644"}


def test_a_single_archive_is_unpacked(client: FlaskClient, tmp_path: Path) -> None:
    content = zipped(**{"wrapper/tokenizer.model": TOKENIZER})
    found = upload(client, content, "Model.ZIP", sha256=sha256(content))
    run(tmp_path, found, sha256={"tokenizer.model": sha256(TOKENIZER)})
    assert (tmp_path / "made" / "tokenizer.model").read_bytes() == TOKENIZER
    assert uploads_left(tmp_path) == []


def test_files_are_linked_and_need_no_further_space(
    client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = upload(client, TOKENIZER + bytes(200_000_000), "tokenizer.model")
    inode = (tmp_path / ".uploads" / found / "data").stat().st_ino
    stats = os.statvfs(tmp_path)
    free = os.statvfs_result((4096, 4096, *stats[2:3], 25_000, 25_000, *stats[5:]))  # 102,400,000 bytes
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    plan = client.post("/api/jobs?dry_run=true", json=request_for(found).model_dump(mode="json")).get_json()
    assert plan["output_bytes"] == len(TOKENIZER) + 200_000_000
    assert plan["disk_needed_bytes"] == 64 * 2**20
    assert "linked_bytes" not in plan
    run(tmp_path, found)
    assert (tmp_path / "made" / "tokenizer.model").stat().st_ino == inode


def test_the_manifest_of_a_model_that_is_uploaded_again_is_replaced(
    client: FlaskClient, tmp_path: Path
) -> None:
    ids = [upload(client, TOKENIZER, "tokenizer.model"), upload(client, b'{"old": 1}', "manifest.json")]
    data = tmp_path / ".uploads" / ids[1] / "data"
    os.link(data, tmp_path / "kept")
    run(tmp_path, *ids)
    manifest = read_manifest(tmp_path / "made")
    assert manifest is not None
    assert manifest.files == {"tokenizer.model": sha256(TOKENIZER)}
    assert (tmp_path / "kept").read_bytes() == b'{"old": 1}', "an upload is never written to"


def test_files_are_copied_where_the_volume_has_no_links(
    client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    run(tmp_path, upload(client, TOKENIZER, "tokenizer.model"))
    manifest = read_manifest(tmp_path / "made")
    assert manifest is not None
    assert manifest.files == {"tokenizer.model": sha256(TOKENIZER)}
    assert (tmp_path / "made" / "tokenizer.model").read_bytes() == TOKENIZER


# ---- refused ------------------------------------------------------------------------------------------


def test_an_unknown_upload_is_refused(client: FlaskClient) -> None:
    for unknown in ("0" * 32, "..", "not-there"):
        assert unknown in problem(submit(client, unknown), 404, "upload_not_found")["detail"]


def test_an_expired_upload_is_refused(client: FlaskClient, tmp_path: Path) -> None:
    found = upload(client, TOKENIZER, "tokenizer.model")
    os.utime(tmp_path / ".uploads" / found / "data", (0, 0))
    assert "has expired" in problem(submit(client, found), 404, "upload_not_found")["detail"]


def test_an_unfinished_upload_is_refused_with_its_bytes(client: FlaskClient) -> None:
    url = create(client, 10, "tokenizer.model").headers["Location"]
    patch(client, url, 0, b"abc")
    found = problem(submit(client, url.rpartition("/")[2]), 409, "upload_unfinished")
    assert "3 of 10 bytes" in found["detail"]


@pytest.mark.parametrize(
    ("names", "code", "part"),
    [
        ([None], "invalid_request", "has no filename"),
        (["a.json", "A.json"], "invalid_request", "names clash"),
        (["a", "a/b"], "invalid_request", "names clash"),
        ([".DS_Store"], "invalid_request", "hold no files"),
        (["damaged.zip"], "unreadable_file", "damaged.zip"),
    ],
)
def test_uploads_that_make_no_folder_are_refused(
    client: FlaskClient, names: list[str | None], code: str, part: str
) -> None:
    ids = [upload(client, PARAMS, name) for name in names]
    assert part in problem(submit(client, *ids), 422, code)["detail"]


def test_an_archive_that_leaves_its_folder_is_refused(client: FlaskClient) -> None:
    found = upload(client, zipped(**{"../x": PARAMS}), "bad.zip")
    detail = problem(submit(client, found), 422, "unsafe_archive")["detail"]
    assert "bad.zip holds '../x', a path that leaves its folder" in detail


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(
    client: FlaskClient, tmp_path: Path
) -> None:
    found = upload(client, zipped(**{"tokenizer.model": TOKENIZER}), "a.zip")
    limited = client_of(tmp_path, unpack_limit_bytes=len(TOKENIZER) - 1)
    problem(submit(limited, found), 422, "unsafe_archive")
    context = replace(job_context(tmp_path), settings=Settings(models_dir=tmp_path, unpack_limit_bytes=1))
    with pytest.raises(UnsafeArchive):
        import_.run(request_for(found), context)


# ---- failed -------------------------------------------------------------------------------------------


def failing(client: FlaskClient, case: str) -> tuple[list[str], dict[str, str], type[GraftwerkError], str]:
    """An upload whose import fails: ids, digests of the request, error and a part of its message."""
    wrong, archive = "0" * 64, zipped(**{"tokenizer.model": TOKENIZER})
    match case:
        case "metadata":
            return [upload(client, TOKENIZER, "tokenizer.model", sha256=wrong)], {}, DigestMismatch, wrong
        case "request":
            return (
                [upload(client, TOKENIZER, "tokenizer.model")],
                {"tokenizer.model": wrong},
                DigestMismatch,
                wrong,
            )
        case "archive":
            return [upload(client, archive, "a.zip", sha256=wrong)], {}, DigestMismatch, "a.zip has SHA-256"
        case "both":
            ids = [upload(client, TOKENIZER, "tokenizer.model", sha256=sha256(TOKENIZER))]
            return ids, {"tokenizer.model": wrong}, DigestMismatch, "the request expects"
    return [upload(client, PARAMS, "params.json")], {}, UnsupportedFormat, "params.json"


@pytest.mark.parametrize("case", ["metadata", "request", "archive", "both", "no model"])
def test_a_failed_import_leaves_its_uploads_and_nothing_else(
    client: FlaskClient, tmp_path: Path, case: str
) -> None:
    ids, digests, error, part = failing(client, case)
    assert submit(client, *ids, sha256=digests).status_code == 202
    with pytest.raises(error, match=part):
        run(tmp_path, *ids, sha256=digests)
    assert uploads_left(tmp_path) == ids
    assert not (tmp_path / "made").exists()
    assert list((tmp_path / ".staging").iterdir()) == []


# ---- needed -------------------------------------------------------------------------------------------


def test_an_upload_that_a_job_needs_is_neither_deleted_nor_swept(redis: Redis, settings: Settings) -> None:
    volume = settings.models_dir
    client = client_of(volume, redis=redis)
    found, unused = (upload(client, TOKENIZER, "tokenizer.model") for _ in range(2))
    job_id = submit(client, found).get_json()["id"]
    response = client.delete(f"/api/uploads/{found}", headers=TUS)
    assert job_id in problem(response, 409, "upload_in_use")["detail"]
    for upload_id in (found, unused):
        os.utime(volume / ".uploads" / upload_id / "data", (0, 0))
    janitor = Janitor(redis, settings)
    janitor.round()
    assert uploads_left(volume) == [found]
    assert client.get(f"/api/uploads/{found}").status_code == 200, "its time starts over"
    JobQueue(redis, settings).cancel(job_id)
    os.utime(volume / ".uploads" / found / "data", (0, 0))
    janitor.round()
    assert uploads_left(volume) == []
