"""A vanished volume is told from an empty one; one that is mounted again is recognized."""

from pathlib import Path

import pytest

from services.errors import VolumeUnavailable
from services.models import volume as module
from services.models.store import ModelStore
from services.models.volume import MARKER, Volume


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test a process that has noted no volume."""
    restart(monkeypatch)


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NOTED", {})


def unmount(root: Path) -> Path:
    """Moves the volume away and leaves an empty folder, as a missing mount does; returns where it is."""
    away = root.with_name("away")
    root.rename(away)
    root.mkdir()
    return away


def mount(away: Path, root: Path) -> None:
    """Puts a copy of the volume into the folder: for the kernel it is another one than before."""
    for path in root.iterdir():
        path.unlink()
    root.rmdir()
    away.rename(root.with_name("moved"))
    root.mkdir()
    (root / MARKER).write_bytes((root.with_name("moved") / MARKER).read_bytes())


def test_an_empty_folder_in_place_of_the_volume_is_not_taken_for_it(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    store.volume.mark()
    away = unmount(store.root)
    for use in (store.check, store.names, store.free_bytes, lambda: store.require_free("a")):
        with pytest.raises(VolumeUnavailable, match="not mounted") as caught:
            use()
        assert str(tmp_path) not in caught.value.message + caught.value.hint
    assert list(store.root.iterdir()) == [], "nothing is made in the empty folder"
    mount(away, store.root)
    store.check()


def test_a_missing_folder_is_not_made_again(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    store.check()
    store.root.rmdir()
    with pytest.raises(VolumeUnavailable, match="No such file") as caught:
        store.names()
    assert str(tmp_path) not in caught.value.message
    assert not store.root.exists()


def test_a_process_that_started_without_the_mount_takes_the_volume_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume(tmp_path / "models")
    volume.mark()
    away = unmount(volume.root)
    restart(monkeypatch)
    volume.mark()
    mount(away, volume.root)
    volume.require()


def test_a_marker_is_written_once(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    volume.mark()
    marker = (tmp_path / MARKER).read_bytes()
    volume.mark()
    assert (tmp_path / MARKER).read_bytes() == marker
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]


@pytest.mark.parametrize(("reason", "accepted"), [(28, True), (30, False)], ids=["full", "read-only"])
def test_a_full_volume_is_not_ready_but_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int, accepted: bool
) -> None:
    volume = Volume(tmp_path)

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(reason, "refused", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(VolumeUnavailable, match="cannot be written: refused") as caught:
        volume.require_writable()
    assert str(tmp_path) not in caught.value.message
    if accepted:
        volume.require_writable(full=True)
    else:
        with pytest.raises(VolumeUnavailable):
            volume.require_writable(full=True)
