"""Folders and archives that people bring: what leaves its folder, lies or is damaged is refused and leaves nothing."""

import errno
import hashlib
import io
import os
import random
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from services.errors import (
    DigestMismatch,
    DiskFull,
    GraftwerkError,
    InvalidRequest,
    JobCanceled,
    UnreadableFile,
    UnsafeArchive,
    UnsupportedFormat,
)
from services.models import imports
from services.models.digests import digest_file
from services.models.imports import import_members, list_archive, list_folder
from services.progress import Progress
from tests.reference.tensor_files import safetensors_file

LIMIT = 10**9
ADAPTER: dict[str, bytes] = {
    "adapter_config.json": b'{"peft_type": "LORA"}',
    "adapter_model.safetensors": safetensors_file({"a": (3, 4)}),
}


def zip_file(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def paths(archive: Path) -> list[str]:
    return [str(member.path) for member in list_archive(archive, limit_bytes=LIMIT)]


def taken(archive: Path, staging: Path, **options: Any) -> list[str]:
    staging.mkdir()
    import_members(list_archive(archive, limit_bytes=LIMIT), staging, **options)
    return sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())


# ---- archives: where files go -------------------------------------------------------------------------


def test_an_archive_is_unpacked_byte_for_byte(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "adapter.zip", ADAPTER)
    (tmp_path / "staging").mkdir()
    imported = import_members(list_archive(archive, limit_bytes=LIMIT), tmp_path / "staging")

    for name, content in ADAPTER.items():
        assert (tmp_path / "staging" / name).read_bytes() == content
    assert imported.kind == "adapter"
    assert imported.size_bytes == sum(map(len, ADAPTER.values()))
    assert imported.digests == {
        name: hashlib.sha256(content).hexdigest() for name, content in ADAPTER.items()
    }


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/cron.d/x", "//x", "..\\x", "a\\..\\..\\x", "\\x", "C:\\x", "C:/x", "c:x", "..", "a/..",
     ".", "./..", "/"],
)  # fmt: skip
def test_a_path_that_leaves_the_folder_is_refused_and_nothing_is_unpacked(tmp_path: Path, name: str) -> None:
    archive = zip_file(tmp_path / "evil.zip", {**ADAPTER, name: b"evil"})
    names = sorted(path.name for path in tmp_path.iterdir())
    if name == "/":  # only the name of a folder: there is nothing to unpack
        assert paths(archive) == list(ADAPTER)
        return
    with pytest.raises(UnsafeArchive, match=r"evil\.zip holds .*: nothing was unpacked"):
        list_archive(archive, limit_bytes=LIMIT)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_a_link_or_a_device_is_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("tokenizer.model")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafeArchive, match=r"'tokenizer\.model', which is a link or not a file"):
        list_archive(tmp_path / "evil.zip", limit_bytes=LIMIT)


def test_a_folder_around_everything_is_left_out(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "a.zip", {f"chinese-llama-lora-7b/{n}": c for n, c in ADAPTER.items()})
    assert paths(archive) == list(ADAPTER)


def test_a_folder_beside_a_file_is_kept(tmp_path: Path) -> None:
    archive = zip_file(
        tmp_path / "a.zip", {"7B/params.json": b"{}", "7B/consolidated.00.pth": b"", "tokenizer.model": b""}
    )
    assert paths(archive) == ["7B/params.json", "7B/consolidated.00.pth", "tokenizer.model"]


def test_what_operating_systems_leave_is_left_out(tmp_path: Path) -> None:
    junk = [
        "__MACOSX/a/._adapter_config.json",
        "a/.DS_Store",
        "a/Thumbs.db",
        "a/._x",
        "a/.git/config",
        "a/.cache/x",
    ]
    archive = zip_file(
        tmp_path / "a.zip", {**{f"a/{n}": c for n, c in ADAPTER.items()}, **dict.fromkeys(junk, b"junk")}
    )
    assert paths(archive) == list(ADAPTER)


@pytest.mark.parametrize(
    "names",
    [
        ("tokenizer.model", "Tokenizer.model"),
        ("a/x", "A/X"),
        ("a", "a/b"),
        ("A", "a/b"),
        ("a/b/c", "a/b"),
        ("x", "./x"),
    ],
)
def test_names_that_clash_are_refused_with_both(tmp_path: Path, names: tuple[str, str]) -> None:
    archive = zip_file(tmp_path / "a.zip", {**ADAPTER, **dict.fromkeys(names, b"")})
    with pytest.raises(UnsafeArchive, match=r"a\.zip holds '.+' and '.+': names clash"):
        list_archive(archive, limit_bytes=LIMIT)


@pytest.mark.filterwarnings(
    "ignore:Duplicate name:UserWarning"
)  # zipfile's own, while the test writes the archive
def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("tokenizer.model", b"one")
        archive.writestr("tokenizer.model", b"two")
    with pytest.raises(UnsafeArchive, match="names clash"):
        list_archive(tmp_path / "a.zip", limit_bytes=LIMIT)


def test_a_name_longer_than_the_system_accepts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match="more than 255 bytes"):
        list_archive(zip_file(tmp_path / "a.zip", {"模" * 100: b""}), limit_bytes=LIMIT)


# ---- archives: how much ---------------------------------------------------------------------------------


def test_too_many_files_are_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "ARCHIVE_FILES_LIMIT", 20)
    archive = zip_file(tmp_path / "many.zip", {f"{number}.json": b"" for number in range(21)})
    with pytest.raises(UnsafeArchive, match="holds 21 files; at most 20"):
        list_archive(archive, limit_bytes=LIMIT)


def test_too_many_bytes_are_refused_with_both_numbers(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "large.zip", {"a": bytes(600), "b": bytes(401)})
    with pytest.raises(UnsafeArchive, match="unpacks to 1001 bytes; at most 1000"):
        list_archive(archive, limit_bytes=1000)
    assert len(list_archive(archive, limit_bytes=1001)) == 2


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "bomb.zip", {"adapter_model.bin": bytes(9_000_000)})
    assert archive.stat().st_size < 20_000
    with pytest.raises(UnsafeArchive, match="weights do not compress like that"):
        list_archive(archive, limit_bytes=LIMIT)


def with_size(archive: Path, size: int) -> Path:
    """The archive's directory says another unpacked size for its first member; so does the member's own header."""
    data = bytearray(archive.read_bytes())
    for signature, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = data.index(signature)
        data[place + at : place + at + 4] = struct.pack("<I", size)
    archive.write_bytes(data)
    return archive


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("size", [10, 90_000])
def test_a_directory_that_lies_about_a_size_is_found_out(tmp_path: Path, size: int, compression: int) -> None:
    """60,000 bytes are there: no more than was announced is ever written."""
    content = random.Random(1).randbytes(60_000)
    archive = with_size(zip_file(tmp_path / "a.zip", {"adapter_config.json": content}, compression), size)
    with pytest.raises(UnreadableFile, match=r"adapter_config\.json"):
        taken(archive, tmp_path / "staging")
    written = tmp_path / "staging" / "adapter_config.json"
    assert written.stat().st_size <= size


def test_a_damaged_checksum_is_refused_by_the_files_name(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "a.zip", ADAPTER, zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[data.index(b'"LORA"') + 1] ^= 1
    archive.write_bytes(data)
    with pytest.raises(UnreadableFile, match=r"adapter_config\.json in a\.zip is damaged"):
        taken(archive, tmp_path / "staging")


def test_a_truncated_archive_is_refused_with_its_size(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "a.zip", ADAPTER)
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(UnreadableFile, match=r"a\.zip \(100 bytes\) is not a readable zip archive"):
        list_archive(archive, limit_bytes=LIMIT)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_rare_compression_is_refused(tmp_path: Path, compression: int) -> None:
    archive = zip_file(tmp_path / "a.zip", ADAPTER, compression)
    with pytest.raises(UnsafeArchive, match=f"compressed by method {compression}"):
        list_archive(archive, limit_bytes=LIMIT)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "a.zip", ADAPTER, zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(UnsafeArchive, match="is encrypted"):
        list_archive(archive, limit_bytes=LIMIT)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_archive_with_any_byte_changed_is_refused_or_taken_within_its_folder(tmp_path: Path) -> None:
    whole = zip_file(tmp_path / "a.zip", ADAPTER).read_bytes()
    archive, outside = tmp_path / "b.zip", sorted(path.name for path in tmp_path.iterdir())
    random_ = random.Random(9)
    for number in range(300):
        data = bytearray(whole)
        for _ in range(random_.choice((1, 1, 2))):
            data[random_.randrange(len(data))] = random_.randrange(256)
        archive.write_bytes(data)
        try:
            taken(archive, tmp_path / f"staging-{number}")
        except GraftwerkError:
            continue
    found = {path.name for path in tmp_path.iterdir() if not path.name.startswith("staging-")}
    assert found == {*outside, "b.zip"}


def test_an_archive_cut_short_at_any_byte_is_refused(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "a.zip", ADAPTER)
    for length in reversed(range(archive.stat().st_size)):
        os.truncate(archive, length)
        with pytest.raises(UnreadableFile):
            list_archive(archive, limit_bytes=LIMIT)


# ---- folders ------------------------------------------------------------------------------------------


def folder_of(path: Path, members: Mapping[str, bytes]) -> Path:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def names(source: Path) -> list[str]:
    return [str(member.path) for member in list_folder(source)]


def test_a_folder_is_taken_with_what_lies_below_it(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path / "llama", {"7B/params.json": b"{}", "7B/consolidated.00.pth": b"", "tokenizer.model": b""}
    )
    assert names(source) == ["7B/consolidated.00.pth", "7B/params.json", "tokenizer.model"]


def test_a_single_file_is_taken(tmp_path: Path) -> None:
    source = folder_of(tmp_path, {"chinese_sp.model": b"x"}) / "chinese_sp.model"
    assert names(source) == ["chinese_sp.model"]


def test_a_size_folder_takes_the_tokenizer_one_level_up(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path / "llama", {"7B/params.json": b"{}", "7B/consolidated.00.pth": b"", "tokenizer.model": b"up"}
    )
    members = list_folder(source / "7B")
    assert [str(member.path) for member in members] == [
        "consolidated.00.pth",
        "params.json",
        "tokenizer.model",
    ]
    assert members[-1].source.read_bytes() == b"up"
    assert members[-1].size_bytes == 2


def test_a_size_folder_keeps_its_own_tokenizer(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path / "llama",
        {"7B/consolidated.00.pth": b"", "7B/tokenizer.model": b"own", "tokenizer.model": b"up"},
    )
    assert list_folder(source / "7B")[-1].source.read_bytes() == b"own"


def test_other_folders_take_nothing_from_above(tmp_path: Path) -> None:
    folder_of(tmp_path, {"tokenizer.model": b"up", "adapter/adapter_config.json": b"{}"})
    assert names(tmp_path / "adapter") == ["adapter_config.json"]


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", {"blobs/x": b"weights"})
    (source / "model.safetensors").symlink_to(source / "blobs" / "x")
    assert names(source) == ["blobs/x", "model.safetensors"]


@pytest.mark.parametrize("target", ["secret", "elsewhere"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    folder_of(tmp_path, {"secret": b"", "elsewhere/x": b""})
    source = folder_of(tmp_path / "a", ADAPTER)
    (source / "link").symlink_to(tmp_path / target)
    with pytest.raises(UnsafeArchive, match="link is a link out of a"):
        list_folder(source)


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", ADAPTER)
    (source / "model.safetensors").symlink_to(source / "missing")
    with pytest.raises(UnsafeArchive, match=r"model\.safetensors is neither a file"):
        list_folder(source)


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", ADAPTER)
    (source / "one").symlink_to(source / "two")
    (source / "two").symlink_to(source / "one")
    with pytest.raises(UnsafeArchive, match="is a link in a circle"):
        list_folder(source)


def test_a_pipe_is_refused_and_not_opened(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", ADAPTER)
    os.mkfifo(source / "pipe")
    with pytest.raises(UnsafeArchive, match="pipe is neither a file"):
        list_folder(source)


# ---- taking -------------------------------------------------------------------------------------------


def test_a_digest_that_was_asked_for_is_compared(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "a.zip", ADAPTER)
    right = hashlib.sha256(ADAPTER["adapter_config.json"]).hexdigest()
    assert taken(archive, tmp_path / "one", expected={"adapter_config.json": right.upper()}) == sorted(
        ADAPTER
    )
    assert taken(archive, tmp_path / "two", expected={"./adapter_config.json": right}) == sorted(ADAPTER)
    wrong = "0" * 64
    with pytest.raises(
        DigestMismatch, match=f"adapter_config.json has SHA-256 {right}; {wrong} was expected"
    ):
        taken(archive, tmp_path / "three", expected={"adapter_config.json": wrong})


def test_a_digest_for_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "a.zip", ADAPTER)
    with pytest.raises(
        InvalidRequest, match=r"sha256 names 'other\.bin'; the source holds adapter_config\.json"
    ):
        taken(archive, tmp_path / "staging", expected={"other.bin": "0" * 64})
    assert list((tmp_path / "staging").iterdir()) == []


def test_files_that_are_no_model_are_refused_with_what_was_found(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "a.zip", {"readme.txt": b"hello", "photo.jpg": b""})
    with pytest.raises(UnsupportedFormat, match=r"not a model: found readme\.txt, photo\.jpg; needed are"):
        taken(archive, tmp_path / "staging")


def test_progress_counts_bytes_and_a_cancel_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "COPY_BYTES", 1000)
    source = folder_of(tmp_path / "a", {"adapter_config.json": bytes(2500), "adapter_model.bin": bytes(1000)})
    seen: list[tuple[int, int]] = []
    (tmp_path / "whole").mkdir()
    import_members(list_folder(source), tmp_path / "whole", report=lambda p: seen.append((p.done, p.total)))
    assert seen == [(1000, 3500), (2000, 3500), (2500, 3500), (3500, 3500)]

    def cancel(progress: Progress | None = None) -> None:
        if (tmp_path / "part" / "adapter_config.json").exists():
            raise JobCanceled("canceled")

    (tmp_path / "part").mkdir()
    with pytest.raises(JobCanceled):
        import_members(list_folder(source), tmp_path / "part", check_canceled=cancel)
    assert not (tmp_path / "part" / "adapter_model.bin").exists()


def test_a_file_that_grows_while_it_is_copied_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", ADAPTER)
    members = list_folder(source)
    (source / "adapter_config.json").write_bytes(ADAPTER["adapter_config.json"] + b"more")
    (tmp_path / "staging").mkdir()
    with pytest.raises(UnreadableFile, match=r"adapter_config\.json changed while it was copied"):
        import_members(members, tmp_path / "staging")


def test_a_full_disk_is_refused_with_the_files_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = list_folder(folder_of(tmp_path / "a", {"adapter_config.json": bytes(123)}))
    (tmp_path / "staging").mkdir()

    class Full(io.RawIOBase):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: Full() if mode == "xb" else real(self, mode, *a, **k)
    )
    with pytest.raises(DiskFull, match=r"no space for 123 more bytes \(adapter_config\.json\)"):
        import_members(members, tmp_path / "staging")


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert digest_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
