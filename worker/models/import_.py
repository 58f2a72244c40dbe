"""`import`: the files of a source are copied or downloaded, digested, recognized and published."""

from collections.abc import Callable, Mapping
from pathlib import Path

from services.kinds.import_ import ImportRequest, ImportResult, PathSource, Source, ZipSource
from services.models.imports import Imported, import_members
from services.models.manifest import InputEntry, new_manifest, write_manifest
from services.preflight import Plan
from services.preflight.import_ import import_source
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


FETCHES: Mapping[type[Source], Callable[[ImportRequest, Plan, JobContext, Path], Imported]] = {
    PathSource: _from_volume,
    ZipSource: _from_volume,
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
    return made_result(ImportResult, request, context, manifest)
