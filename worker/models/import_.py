"""`import`: the files of a source are copied or downloaded, digested, recognized and published."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.errors import UploadLocked, UploadNotFound
from services.kinds.import_ import (
    HubSource,
    ImportRequest,
    ImportResult,
    PathSource,
    Source,
    UploadSource,
    ZipSource,
)
from services.models.hub_download import Download
from services.models.hub_selection import selection
from services.models.imports import Imported, check_digest, expected_digests, import_members, recognized
from services.models.manifest import MANIFEST_NAME, InputEntry, new_manifest, write_manifest
from services.models.uploaded_files import digests_to_check, verify_archive
from services.preflight import Plan
from services.preflight.import_ import import_source, import_uploads
from worker.lifecycle import JobContext
from worker.models.publish import idempotent, made_result, planned, publishing


def _from_volume(request: ImportRequest, plan: Plan, context: JobContext, staging: Path) -> Imported:
    assert isinstance(request.source, PathSource | ZipSource)
    members = import_source(request.source, context.store, limit_bytes=context.settings.unpack_limit_bytes)
    return import_members(
        members,
        staging,
        expected=request.sha256,
        report=context.execution.report,
        check_canceled=context.execution.check_canceled,
    )


def _from_uploads(request: ImportRequest, plan: Plan, context: JobContext, staging: Path) -> Imported:
    assert isinstance(request.source, UploadSource)
    report, check_canceled = context.execution.report, context.execution.check_canceled
    limit_bytes = context.settings.unpack_limit_bytes
    files = import_uploads(request.source, context.store, limit_bytes=limit_bytes)
    expected = digests_to_check(files, request.sha256)
    if files.archive is not None:
        verify_archive(files.archive, report=report, check_canceled=check_canceled)
    return import_members(
        files.members, staging, expected=expected, report=report, check_canceled=check_canceled
    )


def _remove_uploads(request: ImportRequest, context: JobContext) -> None:
    for upload_id in request.uploads:
        with suppress(UploadNotFound, UploadLocked):
            context.store.uploads.delete(upload_id)


def _from_hub(request: ImportRequest, plan: Plan, context: JobContext, staging: Path) -> Imported:
    assert isinstance(request.source, HubSource)
    hub = context.hub
    # the commit of the plan, whose bytes are reserved: its branch may have moved since
    repository, files = selection(hub, request.source.model_copy(update={"revision": plan.reads[0].commit}))
    wanted = expected_digests(request.sha256, [file.path for file in files])
    download = Download(hub, repository, files, staging, context.execution.report)
    digests = download.run()
    for path, digest in digests.items():
        check_digest(path, wanted.get(path), digest)
    context.execution.log(f"{repository.name} at commit {repository.commit}: {download.account}")
    return Imported(recognized(staging, list(digests)), digests, download.total_bytes)


@dataclass(frozen=True, slots=True)
class Fetch:
    """Function that brings the files of a source into the staging folder.

    `resumes`: it continues with what a killed execution of the same job has left there.
    """

    run: Callable[[ImportRequest, Plan, JobContext, Path], Imported]
    resumes: bool = False


FETCHES: Mapping[type[Source], Fetch] = {
    PathSource: Fetch(_from_volume),
    ZipSource: Fetch(_from_volume),
    HubSource: Fetch(_from_hub, resumes=True),
    UploadSource: Fetch(_from_uploads),
}
"""Fetch of the files of each type of source."""


@idempotent(ImportResult)
def run(request: ImportRequest, context: JobContext) -> ImportResult:
    """Imports the files of the source and publishes them under the target's name."""
    plan = planned(request, context)
    fetch = FETCHES[type(request.source)]
    with publishing(request, plan, context, take_over=fetch.resumes) as staging:
        taken = fetch.run(request, plan, context, staging)
        source = InputEntry(role="source", name=request.source.name, commit=plan.reads[0].commit)
        digests = {
            path: digest for path, digest in taken.digests.items() if path != MANIFEST_NAME
        }  # it is replaced
        manifest = new_manifest(
            kind=taken.kind, operation="import", inputs=[source], tensors={}, files=digests,
            job_id=context.execution.job_id, result={"bytes_written": taken.size_bytes, "files": len(digests)},
        )  # fmt: skip
        write_manifest(staging, manifest)
    _remove_uploads(request, context)
    return made_result(ImportResult, request, context, manifest)
