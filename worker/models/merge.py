"""`merge`: adapters are merged into a base model; the result is verified and published."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.architectures.checkpoint import Checkpoint
from services.checkpoints.four_bit import bitsandbytes
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.generate import resolve_device
from services.kinds.merge import BaseQuantization, MergeRequest, MergeResult, MergeVerification
from services.merge import Merged, MergeOptions, merge, merged_output
from services.models.digests import weights_digest
from services.models.manifest import InputEntry, Manifest
from services.preflight import Plan
from services.verify import (
    ChangeNorms,
    change_norms,
    compare_precisions,
    expected_merge,
    nothing_changed,
    verify_merge,
)
from worker.lifecycle import JobContext
from worker.models.imatrix import imatrix_figures, output_importance
from worker.models.publish import (
    ANY_SIZE,
    checkpoint_manifest,
    completed_tokenizer,
    gguf_figures,
    idempotent,
    input_entry,
    log_resumed,
    made_result,
    output_dtype,
    output_origin,
    output_template,
    planned,
    write_hooks,
)
from worker.models.reuse import made_or_linked, request_identity


@idempotent(MergeResult)
def run(request: MergeRequest, context: JobContext) -> MergeResult:
    """Merges, verifies and publishes; a merge that fails its own check publishes nothing."""
    plan = planned(request, context)
    if request.compare_precisions:
        bitsandbytes()  # refused before the merge, not after it
    options = MergeOptions(
        request.rounding, output_dtype(request), request.max_shard_bytes, request.output_format,
        request.ranks, output_template(context, request.base, [choice.name for choice in request.adapters]),
        # resolved here, in the job's own process: one that forks must not touch CUDA
        str(resolve_device(context.settings.device)), request.base_precision, output_origin(request, context),
    )  # fmt: skip

    def make(staging: Path) -> Manifest:
        return _merge_into(staging, request, context, plan, options)

    identity = request_identity(request, options, context.store)
    manifest = made_or_linked(request, plan, context, identity, make, resumes=True)
    return made_result(MergeResult, request, context, manifest)


def _merge_into(
    staging: Path, request: MergeRequest, context: JobContext, plan: Plan, options: MergeOptions
) -> Manifest:
    base = context.store.path(request.base)
    adapters = [(choice.name, context.store.path(choice.name), choice.scale) for choice in request.adapters]
    hooks = write_hooks(context, staging)
    options = _with_importance(request, options, context, adapters)
    merged = merge(base, adapters, staging, options=options, hooks=hooks)
    log_resumed(merged.written, context)
    report = verify_merge(merged, options, hooks) if request.verify else None
    norms = _norms(merged, hooks)
    precisions = compare_precisions(merged, options, hooks) if request.compare_precisions else None
    tokenizer = completed_tokenizer(staging, request.output_format, options.template)
    inputs = [input_entry("base", request.base, base), *_adapter_entries(merged)]
    return checkpoint_manifest(
        request, merged.written, context, inputs,
        warnings=[*plan.warnings, *nothing_changed(merged.adapters, norms), *tokenizer.warnings],
        result={
            **_figures(merged, report, norms), **gguf_figures(request, merged.written),
            **imatrix_figures(options.importance), "tokenizer_parity": tokenizer.parity, "precisions": precisions,
        },
    )  # fmt: skip


def _with_importance(
    request: MergeRequest,
    options: MergeOptions,
    context: JobContext,
    adapters: Sequence[tuple[str, Path, float]],
) -> MergeOptions:
    """Returns the options with the importance matrix of the request, if it has one: that of the merged model."""
    if request.imatrix is None:
        return options
    base = context.store.path(request.base)
    expected = expected_merge(base, adapters, options.output_format, options.base_precision)
    output = merged_output(expected.base, expected.adapters, expected.stack, options)
    importance = output_importance(
        request, context, output, expected.base, expected.adapters,
        tokenizer_folder=expected.stack.tokenizer_folder,
    )  # fmt: skip
    return replace(options, importance=importance)


def _norms(merged: Merged, hooks: WriteHooks) -> list[ChangeNorms]:
    with TensorReader() as reader:
        return change_norms(reader, merged.base, merged.adapters, hooks)


def _figures(
    merged: Merged, report: MergeVerification | None, norms: Sequence[ChangeNorms]
) -> dict[str, Any]:
    accounts = [
        account.model_copy(update={"rows_added": norm.rows_added, "change_norms": dict(norm.by_kind)})
        for account, norm in zip(merged.accounts, norms, strict=True)
    ]
    return {
        "bytes_read": merged.base.size_bytes, "bytes_written": merged.written.size_bytes,
        "tensors": len(merged.written.plans), "adapters": accounts, "verification": report,
        "vocabulary_size": merged.stack.vocabulary_rows, "device": merged.device, "resumed": merged.written.resumed,
        "base_quantization": _base_quantization(merged.base),
    }  # fmt: skip


def _base_quantization(base: Checkpoint) -> BaseQuantization | None:
    found = [source.four_bit for source in base.tensors.values() if source.four_bit is not None]
    if not found:
        return None
    return BaseQuantization(
        tensors=len(found), quant_type=found[0].quant_type, block_size=found[0].block_size,
        double_quantization=found[0].double, stored=bool(found[0].stored),
    )  # fmt: skip


def _adapter_entries(merged: Merged) -> list[InputEntry]:
    return [
        InputEntry(
            role="adapter",
            name=item.adapter.name,
            digest=weights_digest(item.adapter, ANY_SIZE),
            scale=item.scale,
        )
        for item in merged.adapters
    ]
