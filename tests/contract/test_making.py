"""A job whose worker died between publishing and saying so finds its own model when it runs again."""

from pathlib import Path

import pytest

from services.errors import ModelExists
from services.kinds.import_ import ImportRequest
from tests.job_context import job_context
from tests.reference.tokenizer_files import sentencepiece_file
from worker.models import import_

REQUEST = ImportRequest.model_validate(
    {"kind": "import", "source": {"path": "incoming/tokenizer.model"}, "target": "taken"}
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming/tokenizer.model").write_bytes(sentencepiece_file(["<unk>", "<s>", "</s>", "a"]))
    return tmp_path


def test_a_second_try_of_the_same_job_finds_what_the_first_published(root: Path) -> None:
    first = import_.run(REQUEST, job_context(root, job_id="one"))
    written = (root / "taken/manifest.json").read_bytes()
    second = import_.run(REQUEST, job_context(root, job_id="one"))
    assert second == first
    assert (root / "taken/manifest.json").read_bytes() == written


def test_another_job_is_told_that_the_name_is_taken(root: Path) -> None:
    import_.run(REQUEST, job_context(root, job_id="one"))
    with pytest.raises(ModelExists, match="'taken'"):
        import_.run(REQUEST, job_context(root, job_id="two"))
