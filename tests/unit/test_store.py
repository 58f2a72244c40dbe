"""The model volume: models appear whole or not at all, and no path leads out of it."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from services.errors import (
    ExecutionSuperseded,
    InvalidName,
    ModelExists,
    ModelNotFound,
    SourceNotFound,
    VolumeUnavailable,
)
from services.models.staging import journal_of
from services.models.store import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "volume")


def put(store: ModelStore, name: str) -> Path:
    folder = store.root / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def staged(store: ModelStore) -> list[str]:
    staging = store.root / ".staging"
    return sorted(path.name for path in staging.iterdir()) if staging.is_dir() else []


# ---- publishing ---------------------------------------------------------------------------------------


def test_a_model_has_no_name_before_the_block_ends(store: ModelStore) -> None:
    with store.publishing("llama-7b", execution="job-1") as staging:
        (staging / "model.safetensors").write_bytes(b"weights")
        assert store.names() == []
        assert not store.exists("llama-7b")
        assert staging.stat().st_dev == store.root.stat().st_dev, "a rename must be possible"
    assert store.names() == ["llama-7b"]
    assert (store.path("llama-7b") / "model.safetensors").read_bytes() == b"weights"
    assert staged(store) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(store: ModelStore, error: type[BaseException]) -> None:
    with pytest.raises(error), store.publishing("llama-7b", execution="job-1") as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "half").write_bytes(b"half")
        raise error
    assert store.names() == []
    assert staged(store) == []


def test_an_execution_that_was_overtaken_publishes_nothing(store: ModelStore) -> None:
    def confirm() -> None:
        raise ExecutionSuperseded("another execution has taken over")

    with (
        pytest.raises(ExecutionSuperseded),
        store.publishing("a", execution="job-1", confirm=confirm) as staging,
    ):
        (staging / "config.json").write_text("{}")
    assert (store.names(), staged(store)) == ([], [])


def test_confirming_is_the_last_thing_before_the_name(store: ModelStore) -> None:
    seen: list[str] = []

    def confirm() -> None:
        seen.extend(path.name for path in (store.root / ".staging" / "job-1" / "model").iterdir())
        seen.extend(store.names())

    with store.publishing("a", execution="job-1", confirm=confirm) as staging:
        (staging / "config.json").write_text("{}")
    assert seen == ["config.json"]


@pytest.mark.parametrize("taken", ["llama-7b", "LLaMA-7B"])
def test_a_name_that_is_taken_in_any_letter_case_is_refused(store: ModelStore, taken: str) -> None:
    put(store, taken)
    with (
        pytest.raises(ModelExists, match="'llama-7b' exists already"),
        store.publishing("llama-7b", execution="e"),
    ):
        pytest.fail("the block must not be entered")
    assert store.exists("LLAMA-7b")


def test_a_name_that_is_taken_meanwhile_is_refused_and_kept(store: ModelStore) -> None:
    with pytest.raises(ModelExists), store.publishing("a", execution="e") as staging:
        (staging / "mine").write_text("mine")
        put(store, "A")
    assert (store.names(), staged(store)) == (["A"], [])


def test_a_name_that_is_taken_in_the_last_moment_is_refused_and_kept(store: ModelStore) -> None:
    """Between the last look and the rename: the rename itself must not replace anything."""
    with (
        pytest.raises(ModelExists),
        store.publishing("a", execution="e", confirm=lambda: put(store, "a") and None) as staging,
    ):
        (staging / "mine").write_text("mine")
    assert [path.name for path in store.path("a").iterdir()] == ["config.json"]
    assert staged(store) == []


def test_what_a_crashed_run_left_in_the_staging_folder_is_not_taken(store: ModelStore) -> None:
    stale = store.root / ".staging" / "job-1"
    stale.mkdir(parents=True)
    (stale / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    with store.publishing("a", execution="job-1") as staging:
        assert list(staging.iterdir()) == []


def leave(store: ModelStore, execution: str) -> Path:
    """Remains of a killed execution: files in staging, without a lock on them."""
    place = store.root / ".staging" / execution
    (place / "model").mkdir(parents=True)
    (place / "model" / "part").write_bytes(b"part")
    (place / "journal").write_text("noted")
    return place


def test_what_a_killed_run_of_the_same_job_left_is_taken_over(store: ModelStore) -> None:
    leave(store, "job.1")
    leave(store, "other.1")
    with store.publishing("a", execution="job.2", take_over=True) as staging:
        assert (staging / "part").read_bytes() == b"part"
        assert journal_of(staging).read_text() == "noted"
        assert staged(store) == ["job.2", "other.1"]
    assert [path.name for path in store.path("a").iterdir()] == ["part"]
    assert staged(store) == ["other.1"]


def test_what_a_killed_run_left_is_removed_where_it_is_of_no_use(store: ModelStore) -> None:
    leave(store, "job.1")
    with store.publishing("a", execution="job.2") as staging:
        assert list(staging.iterdir()) == []
        assert staged(store) == ["job.2"]


def test_what_a_run_still_works_on_is_not_taken_over(store: ModelStore) -> None:
    """A run that was out of reach for a while and is superseded writes on, to its own folder."""
    with store.publishing("a", execution="job.1") as first:
        (first / "mine").write_text("first")
        with store.publishing("b", execution="job.2", take_over=True) as second:
            assert list(second.iterdir()) == []
        assert (first / "mine").read_text() == "first"
    assert store.names() == ["a", "b"]


def test_what_a_job_has_staged_is_counted_in_bytes_of_the_disk(store: ModelStore) -> None:
    place = leave(store, "job.1")
    (place / "model" / "shard").write_bytes(b"x" * 100_000)
    assert 100_000 <= store.staging.bytes_of("job") <= 130_000
    assert store.staging.bytes_of("jo") == 0


def test_staged_files_that_vanish_while_they_are_counted_count_nothing(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = leave(store, "job.1")
    monkeypatch.setattr("os.walk", lambda folder: [(str(folder), [], ["gone"])])
    assert store.staging.bytes_of("job") == 0
    monkeypatch.undo()
    shutil.rmtree(place)
    monkeypatch.setattr(store.staging, "_places", lambda: [place])
    assert store.staging.bytes_of("job") == 0
    shutil.rmtree(store.staging.root)
    assert ModelStore(store.root).staging.bytes_of("job") == 0


def test_files_are_readable_by_all_for_any_umask(store: ModelStore) -> None:
    before = os.umask(0o077)
    try:
        with store.publishing("a", execution="e") as staging:
            (staging / "7B").mkdir()
            (staging / "7B" / "params.json").write_text("{}")
            (staging / "run.sh").write_text("")
            (staging / "run.sh").chmod(0o700)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (store.root / "a").rglob("*")}
    assert modes == {"7B": 0o755, "params.json": 0o644, "run.sh": 0o644}
    assert stat.S_IMODE((store.root / "a").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "/a", "a\\b", ".hidden", "-a", "_a", "a b", "a\n", "ä", "a" * 97, "incoming",
     "Incoming", "RESULTS", "a\0"],
)  # fmt: skip
def test_a_name_that_could_leave_the_volume_or_confuse_is_refused(store: ModelStore, name: str) -> None:
    put(store, "b")
    for use in (store.path, store.delete, store.describe):
        with pytest.raises(InvalidName, match="cannot name a model"):
            use(name)
    with pytest.raises(InvalidName), store.publishing(name, execution="e"):
        pytest.fail("the block must not be entered")


@pytest.mark.parametrize("name", ["a", "7B", "llama-7b-hf", "A.b_c-D", "a" * 96, "incoming2"])
def test_a_plain_name_is_accepted(store: ModelStore, name: str) -> None:
    with store.publishing(name, execution="e") as staging:
        (staging / "config.json").write_text("{}")
    assert store.names() == [name]


# ---- looking ------------------------------------------------------------------------------------------


def test_folders_of_the_volume_itself_are_no_models(store: ModelStore) -> None:
    for name in ("incoming", "results", ".staging", ".trash", "lost+found", "b", "A"):
        (store.root / name).mkdir(parents=True)
    (store.root / "a-file").write_text("")
    assert store.names() == ["A", "b"]


def test_a_missing_model_is_named_with_those_that_are_there(store: ModelStore) -> None:
    put(store, "one")
    put(store, "two")
    with pytest.raises(ModelNotFound, match="No model is named 'three'; there are: one, two"):
        store.path("three")
    with pytest.raises(ModelNotFound):
        store.path("One")


def test_a_volume_that_is_no_folder_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ModelStore(tmp_path / "file" / "volume")
    for use in (store.check, store.names, store.free_bytes):
        with pytest.raises(VolumeUnavailable, match="model volume"):
            use()


def test_checking_the_volume_leaves_nothing_behind(store: ModelStore) -> None:
    store.check()
    assert list(store.root.iterdir()) == []
    assert store.free_bytes() > 0


# ---- deleting and sweeping ----------------------------------------------------------------------------


def test_a_deleted_model_is_gone_with_its_files(store: ModelStore) -> None:
    put(store, "a")
    put(store, "b")
    store.delete("a")
    assert store.names() == ["b"]
    assert list((store.root / ".trash").iterdir()) == []
    with pytest.raises(ModelNotFound):
        store.delete("a")


def test_a_name_can_be_used_again_after_deleting(store: ModelStore) -> None:
    put(store, "a")
    store.delete("a")
    with store.publishing("A", execution="e") as staging:
        (staging / "config.json").write_text("{}")
    assert store.names() == ["A"]


def test_deleting_a_link_leaves_what_it_points_to(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("")
    store.root.mkdir()
    (store.root / "a").symlink_to(tmp_path / "elsewhere")
    store.delete("a")
    assert store.names() == []
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_sweeping_takes_what_no_living_execution_owns(store: ModelStore) -> None:
    put(store, "a")
    for name in ("dead-1", "alive", "dead-2"):
        (store.root / ".staging" / name).mkdir(parents=True)
        (store.root / ".staging" / name / "part").write_text("")
    (store.root / ".trash" / "old").mkdir(parents=True)

    gone = store.sweep(lambda execution: execution == "alive")

    assert gone == ["dead-1", "dead-2"]
    assert staged(store) == ["alive"]
    assert list((store.root / ".trash").iterdir()) == []
    assert store.names() == ["a"]


def test_sweeping_an_empty_volume_does_nothing(store: ModelStore) -> None:
    assert store.sweep(lambda execution: False) == []


# ---- incoming -----------------------------------------------------------------------------------------


@pytest.fixture
def incoming(store: ModelStore) -> ModelStore:
    folder = store.root / "incoming" / "llama" / "7B"
    folder.mkdir(parents=True)
    (folder / "params.json").write_text("{}")
    put(store, "model")
    return store


@pytest.mark.parametrize(
    "path", ["incoming/llama", "incoming/llama/7B/params.json", "incoming/./llama/../llama"]
)
def test_a_path_below_incoming_is_found(incoming: ModelStore, path: str) -> None:
    assert incoming.incoming(path).exists()


@pytest.mark.parametrize(
    "path",
    ["incoming", "incoming/", "incoming/..", "incoming/../model", "incoming/llama/../../model/config.json", "model",
     "../incoming/llama", "/etc/passwd", "/", "", ".", "..", "llama", "incoming2/llama", "INCOMING/llama"],
)  # fmt: skip
def test_a_path_that_leaves_incoming_is_refused(incoming: ModelStore, path: str) -> None:
    with pytest.raises(InvalidName, match="is not a path below incoming/"):
        incoming.incoming(path)


def test_an_absolute_path_is_refused_even_when_it_lies_below_incoming(incoming: ModelStore) -> None:
    with pytest.raises(InvalidName):
        incoming.incoming(str(incoming.root / "incoming" / "llama"))


@pytest.mark.parametrize("path", ["incoming/a\0b", "incoming/" + "a" * 5000, "incoming/\ud800"])
def test_a_path_that_no_system_knows_is_refused(incoming: ModelStore, path: str) -> None:
    with pytest.raises((InvalidName, SourceNotFound)):
        incoming.incoming(path)


def test_a_link_out_of_incoming_is_refused(incoming: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    (incoming.root / "incoming" / "link").symlink_to(tmp_path / "secret")
    (incoming.root / "incoming" / "folder").symlink_to(incoming.root / "model")
    for path in ("incoming/link", "incoming/folder", "incoming/folder/config.json"):
        with pytest.raises(InvalidName):
            incoming.incoming(path)


def test_a_missing_source_is_named_with_those_that_are_there(incoming: ModelStore) -> None:
    with pytest.raises(SourceNotFound, match="'incoming/llame' is not on the volume; incoming/ holds: llama"):
        incoming.incoming("incoming/llame")


def test_a_volume_without_incoming_says_so(store: ModelStore) -> None:
    with pytest.raises(SourceNotFound, match="incoming/ holds: nothing"):
        store.incoming("incoming/llama")
