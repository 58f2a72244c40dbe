"""`combine`: several adapters become one, which is verified and published."""

from pathlib import Path
from typing import Any

from services.adapter_tools import Combined, CombineOptions, combine
from services.adapters.adapter import read_adapter
from services.kinds.combine import CombineRequest, CombineResult
from services.models.digests import weights_digest
from services.models.manifest import InputEntry, Manifest
from services.preflight import Plan
from worker.lifecycle import JobContext
from worker.models.publish import ANY_SIZE, adapter_manifest, idempotent, made_result, planned, write_hooks
from worker.models.reuse import made_or_linked, request_identity


@idempotent(CombineResult)
def run(request: CombineRequest, context: JobContext) -> CombineResult:
    """Combines, verifies and publishes; an adapter that fails its own check is not published."""
    plan = planned(request, context)
    options = CombineOptions(request.method, request.density, request.seed, request.rank)

    def make(staging: Path) -> Manifest:
        return _combine_into(staging, request, context, plan, options)

    scales = [choice.scale for choice in request.adapters]
    identity = request_identity(request, (options, scales), context.store)
    manifest = made_or_linked(request, plan, context, identity, make)
    return made_result(CombineResult, request, context, manifest)


def _combine_into(
    staging: Path, request: CombineRequest, context: JobContext, plan: Plan, options: CombineOptions
) -> Manifest:
    adapters = [(choice.name, context.store.path(choice.name), choice.scale) for choice in request.adapters]
    combined = combine(adapters, staging, options, write_hooks(context, staging))
    inputs = [
        InputEntry(
            role="adapter",
            name=name,
            digest=weights_digest(read_adapter(folder, name), ANY_SIZE),
            scale=scale,
        )
        for name, folder, scale in adapters
    ]
    others = [warning for warning in plan.warnings if warning not in combined.warnings]
    return adapter_manifest(
        request, combined.written, context, inputs,
        warnings=[*others, *combined.warnings], result=_figures(combined, adapters),
    )  # fmt: skip


def _figures(combined: Combined, adapters: list[tuple[str, Path, float]]) -> dict[str, Any]:
    read = (read_adapter(folder, name) for name, folder, _ in adapters)
    return {
        "rank": combined.rank, "error": combined.error, "errors": combined.errors,
        "pairs": len(combined.written.spectra), "replaced": len(combined.combination.whole),
        "bytes_read": sum(header.size_bytes for adapter in read for header in adapter.headers),
        "bytes_written": combined.written.size_bytes, "tensors": len(combined.written.plans),
    }  # fmt: skip
