"""Finished uploads as the files of a model: together one folder, or one archive."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from services.errors import DigestMismatch, InvalidRequest, UploadUnfinished
from services.models.imports import COPY_BYTES, Member, is_junk, list_archive, unique, without_wrapper
from services.models.relative_path import relative_path
from services.models.upload_file import Upload
from services.progress import CheckCanceled, Progress, Report

SOURCE = "The upload"
"""Name of all uploads of a request in messages about their files."""


@dataclass(frozen=True, slots=True)
class UploadedFiles:
    """Files of a model that were uploaded, the digests to check by path, and the archive that holds them, if any."""

    members: list[Member]
    digests: Mapping[str, str]
    archive: Upload | None = None


def uploaded_files(uploads: Sequence[Upload], *, limit_bytes: int) -> UploadedFiles:
    """Returns the files that finished uploads make.

    Args:
        uploads: a single one may be a zip archive, which is unpacked.
        limit_bytes: size that an archive may unpack to.

    Raises:
        UploadUnfinished: bytes of an upload are missing.
        InvalidRequest: an upload has no filename, or two have the same.
        UnsafeArchive, UnreadableFile: the archive is not accepted.
    """
    for upload in uploads:
        _check(upload)
    if len(uploads) == 1 and _is_archive(uploads[0]):
        name = str(uploads[0].filename)
        members = list_archive(uploads[0].data, limit_bytes=limit_bytes, name=name)
        found = UploadedFiles(members, {}, uploads[0])
    else:
        members, digests = _folder(uploads)
        found = UploadedFiles(members, digests)
    if not found.members:
        raise InvalidRequest("The uploads hold no files of a model.", "Upload the model's files themselves.")
    return found


def _check(upload: Upload) -> None:
    if not upload.is_finished:
        raise UploadUnfinished(
            f"The upload {upload.id} ({upload.filename}) has {upload.received_bytes} of {upload.size_bytes} bytes.",
            "Send the rest first, from the offset that HEAD gives.",
        )
    if upload.filename is None:
        raise InvalidRequest(
            f"The upload {upload.id} has no filename.", "Create it with `filename` in Upload-Metadata."
        )


def _is_archive(upload: Upload) -> bool:
    return relative_path(str(upload.filename)).suffix.lower() == ".zip"


def _folder(uploads: Sequence[Upload]) -> tuple[list[Member], dict[str, str]]:
    paths = [relative_path(str(upload.filename)) for upload in uploads]
    listed = [
        Member(path, upload.size_bytes, upload.data, is_linkable=True)
        for path, upload in zip(paths, uploads, strict=True)
        if not is_junk(path)
    ]
    members = without_wrapper(unique(listed, SOURCE, InvalidRequest))
    digest_of = {upload.data: upload.sha256 for upload in uploads if upload.sha256 is not None}
    return members, {str(m.path): digest_of[m.source] for m in members if m.source in digest_of}


def digests_to_check(files: UploadedFiles, requested: Mapping[str, str]) -> dict[str, str]:
    """Returns the digests to check: those of the uploads' metadata and those of the request.

    Raises:
        DigestMismatch: the two name different digests for a file.
    """
    given = {str(PurePosixPath(path)): digest.lower() for path, digest in requested.items()}
    for path in sorted(given.keys() & files.digests.keys()):
        if given[path] != files.digests[path]:
            raise DigestMismatch(
                f"{path} has SHA-256 {files.digests[path]} according to its upload; the request expects {given[path]}.",
                "Correct the digest, or upload the right file.",
            )
    return {**files.digests, **given}


def verify_archive(archive: Upload, *, report: Report, check_canceled: CheckCanceled) -> None:
    """Checks an uploaded archive against the SHA-256 of its metadata, if it has one.

    Raises:
        DigestMismatch: the archive has another one.
    """
    if archive.sha256 is None:
        return
    digest, done = hashlib.sha256(), 0
    with archive.data.open("rb") as file:
        while piece := file.read(COPY_BYTES):
            digest.update(piece)
            done += len(piece)
            check_canceled()
            report(Progress("checking the archive", done, archive.size_bytes))
    if digest.hexdigest() != archive.sha256:
        raise DigestMismatch(
            f"{archive.filename} has SHA-256 {digest.hexdigest()}; {archive.sha256} was expected.",
            "The upload is damaged: send it again.",
        )
