"""Making models: the three kinds of job that publish one. Staging folder, work, manifest, one rename."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.checkpoints.huggingface import Watch, WrittenModel
from services.convert import ConvertOptions, convert, summarize
from services.formats.tensors import DTYPE_CODES
from services.intake import import_source, preflight, weights_digest
from services.jobs.requests import AnyRequest, ConvertRequest, ImportRequest, MergeRequest, parse_size
from services.merge import Merged, MergeOptions, merge
from services.merge.verify import verify_merge
from services.models.manifest import (
    InputEntry,
    Manifest,
    TensorEntry,
    new_manifest,
    read_manifest,
    tensor_digest,
    write_manifest,
)
from services.models.uploads import import_members
from worker.lifecycle import Context

ANY_SIZE = 2**63
"""A worker digests weight files of every size before it starts."""


def make_import(request: ImportRequest, context: Context) -> Mapping[str, Any]:
    """Takes the files, recognises them, publishes them under the target's name."""
    preflight(request, context.store, {})
    members = import_source(request, context.store, limit_bytes=context.settings.unpack_limit_bytes)
    with _publishing(request, request.target, context) as staging:
        taken = import_members(
            members,
            staging,
            expected=request.sha256,
            report=context.report,
            check_canceled=context.check_canceled,
        )
        source = InputEntry(role="source", name=str(request.source.model_dump(exclude_none=True)))
        manifest = new_manifest(
            kind=taken.kind, operation="import", inputs=[source], tensors={}, files=dict(taken.digests),
            job_id=context.job_id,
        )  # fmt: skip
        write_manifest(staging, manifest)
    return _result(request.target, context, {"bytes_written": taken.size_bytes, "files": len(taken.digests)})


def make_convert(request: ConvertRequest, context: Context) -> Mapping[str, Any]:
    """Converts and publishes a checkpoint."""
    plan = preflight(request, context.store, {})
    source = context.store.path(request.source)
    options = ConvertOptions(_dtype(request.dtype), parse_size(request.max_shard_size), request.instruct)
    with _publishing(request, request.target, context) as staging:
        checkpoint, written = convert(source, staging, options, _watch(context))
        figures = summarize(checkpoint, written)
        manifest = _manifest(
            request, written, context, [_input("source", request.source, source)], plan.warnings
        )
        write_manifest(staging, manifest.model_copy(update={"result": figures}))
    return _result(
        request.target, context, {**figures, "tensor_digest": manifest.digest, "warnings": plan.warnings}
    )


def make_merge(request: MergeRequest, context: Context) -> Mapping[str, Any]:
    """Merges, verifies and publishes; a merge that fails its own check publishes nothing."""
    plan = preflight(request, context.store, {}, digest_limit_bytes=ANY_SIZE)
    base = context.store.path(request.base)
    adapters = [(choice.name, context.store.path(choice.name), choice.scale) for choice in request.adapters]
    options = MergeOptions(request.rounding, _dtype(request.dtype), parse_size(request.max_shard_size))
    with _publishing(request, request.target, context) as staging:
        merged = merge(base, adapters, staging, options=options, watch=_watch(context))
        report = verify_merge(merged, options, _watch(context)) if request.verify else None
        figures = _merge_figures(merged, report)
        inputs = [_input("base", request.base, base), *_adapter_inputs(merged)]
        manifest = _manifest(request, merged.written, context, inputs, plan.warnings)
        write_manifest(staging, manifest.model_copy(update={"result": figures}))
    return _result(
        request.target, context, {**figures, "tensor_digest": manifest.digest, "warnings": plan.warnings}
    )


def _merge_figures(merged: Merged, report: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "bytes_read": merged.base.size_bytes, "bytes_written": merged.written.size_bytes,
        "tensors": len(merged.written.plans), "adapters": list(merged.accounts), "verification": report,
        "vocabulary_size": merged.stack.vocabulary_rows,
    }  # fmt: skip


@contextmanager
def _publishing(request: AnyRequest, target: str, context: Context) -> Iterator[Path]:
    context.log(f"{request.kind} into {target} begins")
    with context.store.publishing(target, execution=context.execution, confirm=context.confirm) as staging:
        yield staging
    context.log(f"{target} is published")


def _watch(context: Context) -> Watch:
    return Watch(context.report, context.check_canceled)


def _dtype(name: str | None) -> str | None:
    return DTYPE_CODES[name] if name else None


def _input(role: str, name: str, folder: Path) -> InputEntry:
    manifest = read_manifest(folder)
    return InputEntry(role=role, name=name, digest=_digest_of(manifest) if manifest else None)


def _digest_of(manifest: Manifest) -> str | None:
    """The tensors' digest of what we made; of what was imported, one over its files' digests."""
    if manifest.digest is not None:
        return manifest.digest
    files = {
        name: TensorEntry(dtype="file", shape=[], sha256=digest) for name, digest in manifest.files.items()
    }
    return tensor_digest(files)


def _adapter_inputs(merged: Merged) -> list[InputEntry]:
    return [
        InputEntry(
            role="adapter",
            name=item.adapter.name,
            digest=weights_digest(item.adapter, ANY_SIZE),
            scale=item.scale,
        )
        for item in merged.adapters
    ]


def _manifest(
    request: ConvertRequest | MergeRequest,
    written: WrittenModel,
    context: Context,
    inputs: list[InputEntry],
    warnings: list[str],
) -> Manifest:
    tensors = {
        plan.name: TensorEntry(dtype=plan.dtype, shape=list(plan.shape), sha256=written.digests[plan.name])
        for plan in written.plans
    }
    options = request.model_dump(mode="json", exclude={"kind", "after", "metadata", "webhook", "target"})
    base = read_manifest(context.store.path(inputs[0].name))
    earlier = [entry for entry in (base.inputs if base else []) if entry.role == "adapter"]
    return new_manifest(
        kind="huggingface", operation=request.kind, inputs=[inputs[0], *earlier, *inputs[1:]], tensors=tensors,
        options=options, job_id=context.job_id, warnings=list(warnings),
    )  # fmt: skip


def _result(target: str, context: Context, figures: Mapping[str, Any]) -> dict[str, Any]:
    summary = context.store.describe(target).model_dump(mode="json", exclude={"files", "lineage"})
    return {"model": summary, **figures}
