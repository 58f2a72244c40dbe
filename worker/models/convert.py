"""`convert`: a checkpoint is converted to another layout and published."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from services.architectures.checkpoint import Checkpoint
from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints.folder_spec import WrittenModel
from services.checkpoints.write_hooks import WriteHooks
from services.convert import ConvertOptions, convert, convert_adapter, converted_output
from services.files.gguf_files import read_gguf_model
from services.files.gguf_origin import gguf_origin
from services.kinds.convert import ConvertRequest, ConvertResult
from services.models.manifest import Manifest
from services.models.text_file import read_text_file
from services.preflight import Plan
from services.verify import measure
from worker.lifecycle import JobContext
from worker.models.imatrix import imatrix_figures, output_importance
from worker.models.publish import (
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
    publishing,
    write_description,
    write_hooks,
)
from worker.models.reuse import made_or_linked, request_identity


@idempotent(ConvertResult)
def run(request: ConvertRequest, context: JobContext) -> ConvertResult:
    """Converts and publishes a checkpoint."""
    plan = planned(request, context)
    if request.base is not None:
        return _run_adapter(request, context, plan, request.base)
    source = context.store.path(request.source)
    options = ConvertOptions(
        output_dtype(request), request.max_shard_bytes, request.instruct, request.output_format,
        request.ranks, output_template(context, request.source), output_origin(request, context),
    )  # fmt: skip

    def make(staging: Path) -> Manifest:
        chosen = _with_importance(request, options, context)
        checkpoint, written = convert(source, staging, chosen, write_hooks(context, staging))
        log_resumed(written, context)
        tokenizer = completed_tokenizer(
            staging, request.output_format, options.template, instruct=request.instruct
        )
        return checkpoint_manifest(
            request, written, context, [input_entry("source", request.source, source)],
            warnings=[*plan.warnings, *tokenizer.warnings], origin=_origin(checkpoint),
            result={
                **_figures(checkpoint, written), **gguf_figures(request, written),
                **_measured(request, chosen, checkpoint, staging, context), **imatrix_figures(chosen.importance),
                "tokenizer_parity": tokenizer.parity,
            },
        )  # fmt: skip

    identity = request_identity(request, options, context.store)
    manifest = made_or_linked(request, plan, context, identity, make, resumes=True)
    return made_result(ConvertResult, request, context, manifest)


def _with_importance(request: ConvertRequest, options: ConvertOptions, context: JobContext) -> ConvertOptions:
    """Returns the options with the importance matrix of the request, if it has one."""
    if request.imatrix is None:
        return options
    checkpoint = read_checkpoint(context.store.path(request.source), instruct=options.instruct)
    output = converted_output(checkpoint, options)
    importance = output_importance(
        request, context, output, checkpoint, tokenizer_folder=checkpoint.tokenizer_folder
    )
    return replace(options, importance=importance)


def _measured(
    request: ConvertRequest,
    options: ConvertOptions,
    checkpoint: Checkpoint,
    staging: Path,
    context: JobContext,
) -> dict[str, Any]:
    """Returns the loss against the source, nothing if it was not asked for."""
    if request.measure is None:
        return {}
    text = read_text_file(context.store, request.measure.text_file)
    output = converted_output(checkpoint, options)
    hooks = WriteHooks(context.execution.report, context.execution.check_canceled)
    return measure(checkpoint, output, staging, text, hooks).model_dump(exclude={"tokens"})


def _run_adapter(request: ConvertRequest, context: JobContext, plan: Plan, base: str) -> ConvertResult:
    """Writes an adapter as GGUF and publishes it."""
    source, base_folder = context.store.path(request.source), context.store.path(base)
    with publishing(request, plan, context) as staging:
        hooks = WriteHooks(context.execution.report, context.execution.check_canceled)
        dtype = output_dtype(request)
        planned_adapter, written = convert_adapter(
            base_folder, (request.source, source), staging, dtype, hooks
        )
        read = sum(header.size_bytes for header in planned_adapter.adapter.headers)
        manifest = checkpoint_manifest(
            request, written, context,
            [input_entry("source", request.source, source), input_entry("base", base, base_folder)],
            warnings=plan.warnings,
            result={
                "bytes_read": read, "bytes_written": written.size_bytes, "tensors": len(written.plans),
                **gguf_figures(request, written),
            },
        )  # fmt: skip
        write_description(staging, manifest, context)
    return made_result(ConvertResult, request, context, manifest)


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what the file of a GGUF source states about its origin, nothing for other sources."""
    if checkpoint.layout != "gguf":
        return {}
    return gguf_origin(read_gguf_model(checkpoint.folder).metadata)


def _figures(checkpoint: Checkpoint, written: WrittenModel) -> dict[str, Any]:
    return {
        "bytes_read": checkpoint.size_bytes, "bytes_written": written.size_bytes, "tensors": len(written.plans),
        "dropped": list(checkpoint.dropped), "ranks": checkpoint.ranks, "resumed": written.resumed,
    }  # fmt: skip
