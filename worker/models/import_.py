"""`import`: the files of a source are copied or downloaded, digested, recognized and published."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from services.errors import UploadLocked, UploadNotFound
from services.kinds.import_ import ImportRequest, ImportResult, PathSource, Source, UploadSource, ZipSource
from services.models.imports import Imported, import_members
from services.models.manifest import InputEntry, new_manifest, write_manifest
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


FETCHES: Mapping[type[Source], Callable[[ImportRequest, Plan, JobContext, Path], Imported]] = {
    PathSource: _from_volume,
    ZipSource: _from_volume,
    UploadSource: _from_uploads,
}
"""Function that brings the files of each type of source into the staging folder."""


@idempotent(ImportResult)
def run(request: ImportRequest, context: JobContext) -> ImportResult:
    """Imports the files of the source and publishes them under the target's name."""
    plan = planned(request, context)
    with publishing(request, plan, context) as staging:
        taken = FETCHES[type(request.source)](request, plan, context, staging)
        source = InputEntry(role="source", name=request.source.name)
        manifest = new_manifest(
            kind=taken.kind, operation="import", inputs=[source], tensors={}, files=dict(taken.digests),
            job_id=context.execution.job_id, result={"bytes_written": taken.size_bytes, "files": len(taken.digests)},
        )  # fmt: skip
        write_manifest(staging, manifest)
    _remove_uploads(request, context)
    return made_result(ImportResult, request, context, manifest)
