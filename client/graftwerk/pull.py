"""Download of a model: its archive is unpacked while it arrives, and continued where it broke, also after a restart."""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from graftwerk.errors import ClientError, UsageError
from graftwerk.models import Progress
from graftwerk.remote_archive import RemoteArchive

BLOCK_BYTES = 2**20
MANIFEST = "manifest.json"

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A downloaded model: its folder, the files whose digests were checked, and those checked by their length alone."""

    folder: Path
    verified: list[str]
    unverified: list[str]


def pull(archive: RemoteArchive, name: str, into: Path, report: Report = lambda _: None) -> PulledModel:
    """Downloads a model into the folder `into/name`, which appears when it is complete and verified.

    What has arrived is kept in `into/.name.part` until then.

    Raises:
        UsageError: something of that name is there already.
        ClientError: the model changed meanwhile, the archive is unsafe, or a digest differs.
        ApiError, UnreachableError: as `RemoteArchive` says.
    """
    target, part = into / name, into / f".{name}.part"
    if target.exists():
        raise UsageError(f"{target} exists already.", "Remove it, or pull into another folder.")
    files = _prepared(part, archive.etag)
    _unpack(archive, name, files, report)
    try:
        verified, unverified = _verify(files, report)
    except ClientError:
        shutil.rmtree(part, ignore_errors=True)  # the next attempt starts over
        raise
    files.rename(target)
    shutil.rmtree(part, ignore_errors=True)
    return PulledModel(target, verified, unverified)


def _prepared(part: Path, etag: str) -> Path:
    """Returns the folder for the files; what it has of another version is removed."""
    version, files = part / "etag", part / "files"
    with suppress(OSError):
        if version.read_text(encoding="utf-8") != etag:
            shutil.rmtree(part)
    files.mkdir(parents=True, exist_ok=True)
    version.write_text(etag, encoding="utf-8")
    return files


def _unpack(archive: RemoteArchive, name: str, files: Path, report: Report) -> None:
    with tarfile.open(fileobj=archive, mode="r:") as tar:
        for member in tar:
            target = _safe_target(member, name, files)
            target.parent.mkdir(parents=True, exist_ok=True)
            for position in _fill(archive, member, target):
                report(Progress(stage="downloading", done=position, total=archive.size_bytes, unit="bytes"))


def _safe_target(member: tarfile.TarInfo, name: str, files: Path) -> Path:
    path = PurePosixPath(member.name)
    is_inside = path.parts[:1] == (name,) and len(path.parts) > 1 and ".." not in path.parts
    if not member.isreg() or not is_inside or "\\" in member.name or ":" in member.name:
        raise ClientError(
            f"The archive holds {member.name!r}, which is not a file of the model.", "Do not use it."
        )
    if (data_filter := getattr(tarfile, "data_filter", None)) is not None:  # Python 3.11.4 has it
        data_filter(member, str(files))
    return files.joinpath(*path.parts[1:])


def _fill(archive: RemoteArchive, member: tarfile.TarInfo, target: Path) -> Iterator[int]:
    """Writes what the file lacks of its member, and yields the position in the archive after each block."""
    with target.open("ab") as out:
        have = out.tell()
        if have > member.size:
            have = out.truncate(0)
        while have < member.size:
            archive.seek(member.offset_data + have)
            block = archive.read(min(BLOCK_BYTES, member.size - have))
            out.write(block)
            have += len(block)
            yield archive.tell()


def _verify(files: Path, report: Report) -> tuple[list[str], list[str]]:
    """Compares the files with the digests of their manifest; returns those with and those without digests."""
    manifest = _manifest(files)
    paths = sorted(path for path in files.rglob("*") if path.is_file() and path != files / MANIFEST)
    total = sum(path.stat().st_size for path in paths)
    verified: list[str] = []
    unverified: list[str] = []
    done = 0
    for path in paths:
        relative = path.relative_to(files).as_posix()
        checked = _check(path, relative, manifest)
        (verified if checked else unverified).append(relative)
        done += path.stat().st_size
        report(Progress(stage="verifying", done=done, total=total, unit="bytes"))
    return verified, unverified


def _manifest(files: Path) -> dict[str, Any]:
    try:
        found = json.loads((files / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a model that people put on the volume has none
        return {}
    return found if isinstance(found, dict) else {}


def _check(path: Path, relative: str, manifest: dict[str, Any]) -> bool:
    wanted = manifest.get("files", {}).get(relative)
    if wanted is not None:
        _compare(relative, wanted, _digest(path, 0, path.stat().st_size))
        return True
    tensors = manifest.get("tensors", {})
    if path.suffix != ".safetensors" or not tensors:
        return False
    for name, start, end in _tensors_of(path):
        if name not in tensors:
            return False
        _compare(f"{relative}: {name}", tensors[name]["sha256"], _digest(path, start, end))
    return True


def _tensors_of(path: Path) -> list[tuple[str, int, int]]:
    """Returns name, begin and end of every tensor of a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    begin = 8 + length
    return [(name, *(begin + offset for offset in entry["data_offsets"])) for name, entry in header.items()]


def _digest(path: Path, start: int, end: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (block := file.read(min(BLOCK_BYTES, end - start))):
            digest.update(block)
            start += len(block)
    return digest.hexdigest()


def _compare(what: str, wanted: str, found: str) -> None:
    if wanted != found:
        raise ClientError(
            f"{what} has SHA-256 {found}; the manifest says {wanted}.",
            "Pull it again; if that does not help, check the model with `graftwerk verify`.",
        )
