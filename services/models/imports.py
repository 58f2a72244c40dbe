"""Import of files: listed, checked, copied or unpacked into a staging folder, digested and recognized."""

import errno
import hashlib
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from services.bounded_text import listed
from services.errors import (
    DigestMismatch,
    GraftwerkError,
    InvalidRequest,
    UnreadableFile,
    UnsafeArchive,
    UnsupportedFormat,
)
from services.files.disk_full import disk_full_as_error
from services.files.regular_file import open_regular
from services.files.zip_archive import ARCHIVE_FAULTS, open_zip
from services.kinds.model_summary import ModelKind
from services.models.relative_path import fault_of_path, relative_path
from services.models.summary import kind_of_folder
from services.progress import CheckCanceled, Progress, Report, ignore_progress, never_canceled

COPY_BYTES = 8 * 2**20
ARCHIVE_FILES_LIMIT = 10_000
"""A sharded 70B model has a few hundred files."""

COMPRESSION_LIMIT = 200
"""Weights hardly compress; a member that shrinks by a larger factor is not a model."""

JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db", ".git", ".cache")


@dataclass(frozen=True, slots=True)
class Member:
    """One file to import: its path in the model, its size in bytes, and its source."""

    path: PurePosixPath
    size_bytes: int
    source: Path
    inside: str | None = None  # the member's name where `source` is an archive
    archive: str = ""  # the archive's name for messages
    is_linkable: bool = False  # `source` does not change any more: a link to it is as good as a copy


@dataclass(frozen=True, slots=True)
class Imported:
    """Imported files: the kind of model, each file's SHA-256 and the size of all."""

    kind: ModelKind
    digests: Mapping[str, str]
    size_bytes: int


def list_folder(source: Path) -> list[Member]:
    """Returns the files of a file or folder; for a size folder of 2023 (`llama/7B`) the tokenizer one level up as well.

    Raises:
        UnsafeArchive: a link points out of the folder.
    """
    if source.is_file():
        return [Member(PurePosixPath(source.name), source.stat().st_size, source)]
    root = source.resolve()
    members = []
    for path in sorted(source.rglob("*")):
        relative = PurePosixPath(path.relative_to(source).as_posix())
        if is_junk(relative) or (path.is_dir() and not path.is_symlink()):
            continue
        if not _resolved(path).is_relative_to(root):
            raise UnsafeArchive(
                f"{relative} is a link out of {source.name}.", "Copy the file itself into the folder."
            )
        if not path.is_file():
            raise UnsafeArchive(
                f"{relative} is neither a file nor a folder (or it is a link to a folder, or to nothing).",
                "Copy the files themselves into the folder.",
            )
        members.append(Member(relative, path.stat().st_size, path))
    above = source.parent / "tokenizer.model"
    has_weights = any(
        member.path.match("consolidated.*.pth") and len(member.path.parts) == 1 for member in members
    )
    if has_weights and not (source / "tokenizer.model").exists() and above.is_file():
        members.append(Member(PurePosixPath("tokenizer.model"), above.stat().st_size, above))
    return members


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise UnsafeArchive(f"{path.name} is a link in a circle.", "Remove it from the folder.") from error


def list_archive(source: Path, *, limit_bytes: int, name: str | None = None) -> list[Member]:
    """Returns the files of a zip archive, checked before anything is unpacked; one folder around everything is left out.

    Args:
        name: the archive's name for messages; by default that of the file.

    Raises:
        UnsafeArchive: a path that escapes, a link, too many files, too many bytes, or a bomb.
        UnreadableFile: it is not a zip archive, or it is damaged.
    """
    name = name or source.name
    try:
        with open_zip(source) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (*ARCHIVE_FAULTS, OSError) as error:
        raise UnreadableFile(
            f"{name} ({source.stat().st_size} bytes) is not a readable zip archive ({error}).",
            "The download may be truncated: fetch it again and compare its SHA-256.",
        ) from error
    if len(infos) > ARCHIVE_FILES_LIMIT:
        raise UnsafeArchive(f"{name} holds {len(infos)} files; at most {ARCHIVE_FILES_LIMIT} are accepted.")
    total = sum(info.file_size for info in infos)
    if total > limit_bytes:
        raise UnsafeArchive(
            f"{name} unpacks to {total} bytes; at most {limit_bytes} are accepted.",
            "Raise GRAFTWERK_UNPACK_LIMIT_BYTES if this is right.",
        )
    members = [_archive_member(source, name, info) for info in infos]
    members = [member for member in members if not is_junk(member.path)]
    return without_wrapper(unique(members, name))


def _archive_member(source: Path, name: str, info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16
    fault = fault_of_path(info.filename)
    if fault is not None:
        raise UnsafeArchive(f"{name} holds {info.filename[:80]!r}, {fault}: nothing was unpacked.")
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise UnsafeArchive(
            f"{name} holds {info.filename!r}, which is a link or not a file: nothing was unpacked."
        )
    if info.flag_bits & 1:
        raise UnsafeArchive(
            f"{name} holds {info.filename!r}, which is encrypted.", "Unpack it yourself first."
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsafeArchive(
            f"{name} holds {info.filename!r}, compressed by method {info.compress_type}; stored and deflated are "
            "accepted.",
            "Unpack it yourself first.",
        )
    if info.file_size > COPY_BYTES and info.file_size > COMPRESSION_LIMIT * max(1, info.compress_size):
        raise UnsafeArchive(
            f"{name} holds {info.filename!r}, {info.compress_size} bytes that unpack to {info.file_size}: "
            "weights do not compress like that."
        )
    return Member(relative_path(info.filename), info.file_size, source, info.filename, name)


def unique(members: list[Member], name: str, error: type[GraftwerkError] = UnsafeArchive) -> list[Member]:
    """Returns the members; raises the error if two names are equal ignoring case, or one is a file and a folder."""
    seen: dict[str, Member] = {}
    folders: dict[str, Member] = {}
    for member in members:
        key = str(member.path).lower()
        folders |= {str(folder).lower(): member for folder in member.path.parents}
        other = seen.setdefault(key, member)
        if other is not member:
            raise error(f"{name} holds {str(other.path)!r} and {str(member.path)!r}: names clash.")
    for key in sorted(seen.keys() & folders.keys()):
        raise error(f"{name} holds {str(seen[key].path)!r} and {str(folders[key].path)!r}: names clash.")
    return members


def without_wrapper(members: list[Member]) -> list[Member]:
    """Returns the members without the one folder around all of them, if there is one."""
    tops = {member.path.parts[0] for member in members}
    if len(tops) != 1 or any(len(member.path.parts) == 1 for member in members):
        return members
    return [replace(member, path=PurePosixPath(*member.path.parts[1:])) for member in members]


def is_junk(path: PurePosixPath) -> bool:
    """Returns True for files of operating systems and version control, which are not part of a model."""
    return any(part in JUNK or part.startswith("._") for part in path.parts)


def import_members(
    members: list[Member],
    staging: Path,
    *,
    expected: Mapping[str, str] | None = None,
    report: Report = ignore_progress,
    check_canceled: CheckCanceled = never_canceled,
) -> Imported:
    """Copies the members into the staging folder, digests them on the way, and recognizes the result.

    Args:
        expected: SHA-256 by path, compared with what was copied.

    Raises:
        InvalidRequest: a digest was given for a file that is not there.
        DigestMismatch: a file has another digest.
        UnreadableFile: a file is damaged, or changed meanwhile.
        DiskFull: the volume is full.
        UnsupportedFormat: the files are not a model.
    """
    wanted = expected_digests(expected or {}, [str(member.path) for member in members])
    total = sum(member.size_bytes for member in members)
    digests: dict[str, str] = {}
    done = 0
    for member in members:
        digest = hashlib.sha256()
        for count in _copy(member, staging / member.path, digest):
            done += count
            check_canceled()
            report(Progress("copying files", done, total))
        digests[str(member.path)] = digest.hexdigest()
        check_digest(str(member.path), wanted.get(str(member.path)), digest.hexdigest())
    return Imported(recognized(staging, list(digests)), digests, total)


def expected_digests(expected: Mapping[str, str], paths: list[str]) -> Mapping[str, str]:
    """Returns the digests of a request by path, in lower case.

    Raises:
        InvalidRequest: one is given for a file that is not among the paths.
    """
    digests = {path.removeprefix("./"): digest.lower() for path, digest in expected.items()}
    unknown = sorted(set(digests) - set(paths))
    if unknown:
        raise InvalidRequest(
            f"sha256 names {unknown[0]!r}; the source holds {listed(paths, none='nothing')}."
        )
    return digests


def check_digest(path: str, wanted: str | None, found: str) -> None:
    """Raises DigestMismatch if a file has another digest than the wanted one, if there is one."""
    if wanted is not None and wanted != found:
        raise DigestMismatch(
            f"{path} has SHA-256 {found}; {wanted} was expected.", "The download is damaged: fetch it again."
        )


def recognized(staging: Path, paths: Sequence[str]) -> ModelKind:
    """Returns the kind of model that imported files are.

    Raises:
        UnsupportedFormat: they are not a model.
    """
    kind = kind_of_folder(staging)
    if kind == "unknown":
        raise UnsupportedFormat(
            f"The files are not a model: found {listed(paths, none='no files')}; needed are consolidated.NN.pth with "
            "params.json, a config.json with weights, an adapter_config.json with weights, or a tokenizer.model.",
            "Name the folder or archive that holds the model's files themselves.",
        )
    return kind


def _copy(member: Member, target: Path, digest: "hashlib._Hash") -> Iterator[int]:
    """Copies one member and yields the bytes of each piece."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.is_linkable and _is_linked(member.source, target):
        for chunk in _chunks(member):
            digest.update(chunk)
            yield len(chunk)
        return
    copied = 0
    try:
        with disk_full_as_error(target, member.size_bytes), target.open("xb") as out:
            for chunk in _chunks(member):  # the size is checked again: an archive's directory may lie
                copied += len(chunk)
                if copied > member.size_bytes:
                    break
                out.write(chunk)
                digest.update(chunk)
                yield len(chunk)
    except (*ARCHIVE_FAULTS, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # EINVAL: a damaged directory makes zipfile seek to nowhere
        archive = member.archive or member.source.name
        raise UnreadableFile(
            f"{member.path} in {archive} is damaged ({error}).", "Fetch it again."
        ) from error
    if copied != member.size_bytes:
        raise UnreadableFile(
            f"{member.path} changed while it was copied.", "Import it when no process writes to it."
        )


def _is_linked(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError:  # the file system has no links
        return False
    return True


def _chunks(member: Member) -> Iterable[bytes]:
    if member.inside is None:
        with open_regular(member.source) as file:
            yield from _read(file)
    else:
        with open_zip(member.source) as archive, archive.open(member.inside) as file:
            yield from _read(file)


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(COPY_BYTES):
        yield chunk
