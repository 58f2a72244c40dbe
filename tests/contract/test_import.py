"""Import jobs: their result, the limit of archives, and a second execution of a job that has published already."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from services.errors import ModelExists, UnsafeArchive
from services.kinds.import_ import ImportRequest
from services.models.manifest import read_manifest
from services.settings import Settings
from tests.api_client import client_of
from tests.job_context import job_context
from tests.reference.tokenizer_files import sentencepiece_file
from worker.lifecycle import JobContext, result_as_json
from worker.models import import_

REQUEST = ImportRequest.model_validate(
    {"kind": "import", "source": {"path": "incoming/tokenizer.model"}, "target": "taken"}
)
ARCHIVE = ImportRequest.model_validate(
    {"kind": "import", "source": {"zip": "incoming/tokenizer.zip"}, "target": "unpacked"}
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming/tokenizer.model").write_bytes(sentencepiece_file(["<unk>", "<s>", "</s>", "a"]))
    with zipfile.ZipFile(tmp_path / "incoming/tokenizer.zip", "w") as archive:
        archive.write(tmp_path / "incoming/tokenizer.model", "tokenizer.model")
    return tmp_path


def limited(root: Path, limit_bytes: int) -> JobContext:
    return replace(job_context(root), settings=Settings(models_dir=root, unpack_limit_bytes=limit_bytes))


def test_a_second_execution_of_the_same_job_returns_what_the_first_published(root: Path) -> None:
    first = import_.run(REQUEST, job_context(root, job_id="one"))
    written = (root / "taken/manifest.json").read_bytes()
    second = import_.run(REQUEST, job_context(root, job_id="one"))
    assert result_as_json(second) == result_as_json(first)
    assert (second.files, second.bytes_written) == (1, (root / "taken/tokenizer.model").stat().st_size)
    assert (root / "taken/manifest.json").read_bytes() == written


def test_another_job_is_refused_because_the_name_is_taken(root: Path) -> None:
    import_.run(REQUEST, job_context(root, job_id="one"))
    with pytest.raises(ModelExists, match="'taken'"):
        import_.run(REQUEST, job_context(root, job_id="two"))


@pytest.mark.parametrize("request_", [REQUEST, ARCHIVE], ids=["path", "zip"])
def test_the_manifest_names_the_source_by_its_path(root: Path, request_: ImportRequest) -> None:
    import_.run(request_, limited(root, 10_000))
    manifest = read_manifest(root / request_.target)
    assert manifest is not None
    assert [entry.name for entry in manifest.inputs] == [request_.source.name]
    assert request_.source.name.startswith("incoming/tokenizer.")


def test_the_time_of_creation_ends_in_z_in_the_result_and_in_the_manifest(root: Path) -> None:
    result = result_as_json(import_.run(REQUEST, job_context(root)))
    written = json.loads((root / "taken/manifest.json").read_text())
    assert result["model"]["created_at"] == written["created_at"]
    assert written["created_at"].endswith("Z")


@pytest.mark.parametrize(("share", "status"), [(-1, 422), (0, 202)], ids=["lowered", "enough"])
def test_the_unpack_limit_of_the_settings_counts_at_submission(root: Path, share: int, status: int) -> None:
    size_bytes = (root / "incoming/tokenizer.model").stat().st_size
    client = client_of(root, unpack_limit_bytes=size_bytes + share)
    response = client.post("/api/jobs", json=ARCHIVE.model_dump(mode="json"))
    assert response.status_code == status, response.text
    assert (response.get_json().get("code") == "unsafe_archive") == (status == 422)


def test_an_unpack_limit_above_the_default_counts_at_submission(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default is lowered instead: a larger archive than the real one would be too large for a test."""
    monkeypatch.setattr(Settings.model_fields["unpack_limit_bytes"], "default", 1)
    client = client_of(root, unpack_limit_bytes=10_000)
    assert client.post("/api/jobs", json=ARCHIVE.model_dump(mode="json")).status_code == 202


def test_the_unpack_limit_of_the_settings_counts_in_the_worker(root: Path) -> None:
    with pytest.raises(UnsafeArchive, match="at most 10 are accepted"):
        import_.run(ARCHIVE, limited(root, 10))
    assert import_.run(ARCHIVE, limited(root, 10_000)).model.kind == "tokenizer"
