"""`extract`: a LoRA adapter is computed from a fine-tuned model and its base, verified and published."""

from pathlib import Path
from typing import Any

from services.adapter_tools import Extracted, ExtractOptions, extract
from services.kinds.extract import ExtractRequest, ExtractResult
from services.models.manifest import Manifest
from services.preflight import Plan
from worker.lifecycle import JobContext
from worker.models.publish import adapter_manifest, idempotent, input_entry, made_result, planned, write_hooks
from worker.models.reuse import made_or_linked, request_identity


@idempotent(ExtractResult)
def run(request: ExtractRequest, context: JobContext) -> ExtractResult:
    """Extracts, verifies and publishes; an adapter that fails its own check is not published."""
    plan = planned(request, context)
    options = ExtractOptions(request.rank, request.base)

    def make(staging: Path) -> Manifest:
        return _extract_into(staging, request, context, plan, options)

    identity = request_identity(request, options, context.store)
    manifest = made_or_linked(request, plan, context, identity, make)
    return made_result(ExtractResult, request, context, manifest)


def _extract_into(
    staging: Path, request: ExtractRequest, context: JobContext, plan: Plan, options: ExtractOptions
) -> Manifest:
    base, model = context.store.path(request.base), context.store.path(request.model)
    extracted = extract(base, model, staging, options, write_hooks(context, staging))
    inputs = [input_entry("base", request.base, base), input_entry("model", request.model, model)]
    others = [warning for warning in plan.warnings if warning not in extracted.warnings]
    return adapter_manifest(
        request, extracted.written, context, inputs,
        warnings=[*others, *extracted.warnings], result=_figures(extracted, request.rank),
    )  # fmt: skip


def _figures(extracted: Extracted, rank: int) -> dict[str, Any]:
    return {
        "rank": rank, "error": extracted.error, "errors": extracted.errors,
        "pairs": len(extracted.written.spectra), "replaced": len(extracted.errors) - len(extracted.written.spectra),
        "unchanged": extracted.unchanged, "vocabulary_size": extracted.extraction.vocabulary_rows,
        "bytes_read": extracted.extraction.size_bytes, "bytes_written": extracted.written.size_bytes,
        "tensors": len(extracted.written.plans),
    }  # fmt: skip
