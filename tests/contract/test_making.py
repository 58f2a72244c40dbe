"""A job whose worker died between publishing and saying so finds its own model when it runs again."""

from pathlib import Path

import pytest

from services.errors import ModelExists
from services.kinds.import_ import ImportRequest
from services.models.store import ModelStore
from services.progress import ignore_progress, never_canceled
from services.settings import Settings
from tests.reference.tokenizer_files import sentencepiece_file
from worker.lifecycle import JobContext
from worker.models.merge import idempotent, run_import

REQUEST = ImportRequest.model_validate(
    {"kind": "import", "source": {"path": "incoming/tokenizer.model"}, "target": "taken"}
)


def context(root: Path, job_id: str) -> JobContext:
    return JobContext(
        store=ModelStore(root), settings=Settings(models_dir=root), job_id=job_id, execution=f"of-{job_id}",
        report=ignore_progress, check_canceled=never_canceled, confirm=lambda: None, reserve_disk=lambda room: None, log=lambda line: None, publish_tokens=lambda text: None,
    )  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming/tokenizer.model").write_bytes(sentencepiece_file(["<unk>", "<s>", "</s>", "a"]))
    return tmp_path


def test_a_second_try_of_the_same_job_finds_what_the_first_published(root: Path) -> None:
    first = idempotent(run_import)(REQUEST, context(root, "one"))
    written = (root / "taken/manifest.json").read_bytes()
    second = idempotent(run_import)(REQUEST, context(root, "one"))
    assert second["model"] == first["model"]
    assert (root / "taken/manifest.json").read_bytes() == written


def test_another_job_is_told_that_the_name_is_taken(root: Path) -> None:
    idempotent(run_import)(REQUEST, context(root, "one"))
    with pytest.raises(ModelExists, match="'taken'"):
        idempotent(run_import)(REQUEST, context(root, "two"))
