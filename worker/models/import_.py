"""`import`: files of the volume are copied, digested, recognized and published."""

from services.kinds.import_ import ImportRequest, ImportResult
from services.models.imports import import_members
from services.models.manifest import InputEntry, new_manifest, write_manifest
from services.preflight.import_ import import_source
from worker.lifecycle import JobContext
from worker.models.publish import idempotent, made_result, planned, publishing


@idempotent(ImportResult)
def run(request: ImportRequest, context: JobContext) -> ImportResult:
    """Imports the files of the source and publishes them under the target's name."""
    plan = planned(request, context)
    members = import_source(request, context.store, limit_bytes=context.settings.unpack_limit_bytes)
    with publishing(request, plan, context) as staging:
        taken = import_members(
            members,
            staging,
            expected=request.sha256,
            report=context.execution.report,
            check_canceled=context.execution.check_canceled,
        )
        source = InputEntry(role="source", name=request.source.name)
        manifest = new_manifest(
            kind=taken.kind, operation="import", inputs=[source], tensors={}, files=dict(taken.digests),
            job_id=context.execution.job_id, result={"bytes_written": taken.size_bytes, "files": len(taken.digests)},
        )  # fmt: skip
        write_manifest(staging, manifest)
    return made_result(ImportResult, request, context, manifest)
