"""A vanished volume is told from an empty one; one that is mounted again is recognized."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from services.errors import VolumeUnavailable
from services.jobs.identity import VolumeIdentity
from services.models import volume as module
from services.models.store import ModelStore
from services.models.volume import CONFIRMATION, MARKER, Volume


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test a process that has noted no volume."""
    restart(monkeypatch)
    monkeypatch.setattr(module, "_IDENTITIES", {})


@pytest.fixture
def redis() -> Any:
    return FakeRedis(server=FakeServer())


@pytest.fixture
def volume(tmp_path: Path, redis: Any) -> Volume:
    """The volume of a service that has used it."""
    found = Volume(tmp_path / "models")
    found.identify_by(VolumeIdentity(redis))
    found.require()
    return found


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NOTED", {})


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def marker_of(root: Path) -> bytes | None:
    return (root / MARKER).read_bytes() if (root / MARKER).exists() else None


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


def test_an_empty_folder_in_place_of_the_volume_is_not_taken_for_it(volume: Volume, tmp_path: Path) -> None:
    store = ModelStore(volume.root)
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
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = unmount(volume.root)
    restart(monkeypatch)
    for _ in range(2):
        with pytest.raises(VolumeUnavailable, match="one without the marker of the volume that this service"):
            volume.require()
    assert list(volume.root.iterdir()) == []
    mount(away, volume.root)
    volume.require()


def test_the_first_process_of_a_service_writes_the_marker_once(volume: Volume, redis: Any) -> None:
    marker = marker_of(volume.root)
    assert marker is not None
    assert redis.get("graftwerk:volume") == marker
    volume.require()
    assert marker_of(volume.root) == marker
    assert [path.name for path in volume.root.iterdir()] == [MARKER]
    assert (volume.root / MARKER).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("is_running", [True, False], ids=["running process", "new process"])
def test_an_emptied_volume_is_taken_once_an_operator_has_confirmed_it(
    volume: Volume, redis: Any, monkeypatch: pytest.MonkeyPatch, is_running: bool
) -> None:
    before = marker_of(volume.root)
    away = unmount(volume.root)
    if not is_running:
        restart(monkeypatch)
    with pytest.raises(VolumeUnavailable) as caught:
        volume.require()
    assert CONFIRMATION in caught.value.hint
    (volume.root / CONFIRMATION).touch()
    volume.require()
    marker = marker_of(volume.root)
    assert marker not in (None, before)
    assert redis.get("graftwerk:volume") == marker
    assert not (volume.root / CONFIRMATION).exists()
    restart(monkeypatch)
    volume.require()
    mount(away, volume.root)
    restart(monkeypatch)
    with pytest.raises(VolumeUnavailable, match="one with another marker than that of the volume that"):
        volume.require()


def test_a_volume_of_another_service_is_taken_once_it_is_confirmed(
    volume: Volume, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (volume.root / MARKER).write_text("of another\n")
    restart(monkeypatch)
    with pytest.raises(VolumeUnavailable, match="another marker"):
        volume.require()
    (volume.root / CONFIRMATION).touch()
    volume.require()
    assert redis.get("graftwerk:volume") == marker_of(volume.root) == b"of another\n"


def test_a_new_redis_takes_the_volume_that_is_there(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = marker_of(volume.root)
    restart(monkeypatch)
    other = FakeRedis(server=FakeServer())
    volume.identify_by(VolumeIdentity(other))
    volume.require()
    assert other.get("graftwerk:volume") == marker == marker_of(volume.root)


def test_a_new_redis_and_an_emptied_volume_are_a_new_service(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty(volume.root)
    restart(monkeypatch)
    volume.identify_by(VolumeIdentity(FakeRedis(server=FakeServer())))
    volume.require()
    assert marker_of(volume.root) is not None


def test_without_redis_the_volume_is_used_and_not_marked(
    tmp_path: Path, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume(tmp_path / "models")
    volume.identify_by(VolumeIdentity(redis))
    server = redis.connection_pool.connection_kwargs["server"]
    server.connected = False
    volume.require()
    assert marker_of(volume.root) is None
    server.connected = True
    redis.set("graftwerk:volume", b"another\n")
    with pytest.raises(VolumeUnavailable):
        volume.require()


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
