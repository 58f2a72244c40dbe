"""Making models: the kinds of job that publish one. Staging folder, work, manifest, one rename."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from services.architectures.output_spec import OUTPUT_DTYPES, OutputFormat
from services.checkpoints.huggingface_writer import WriteHooks, WrittenModel, write_json
from services.checkpoints.tensor_reader import TensorReader
from services.convert import ConvertOptions, convert, summarize
from services.generate import resolve_device
from services.jobs.disk_reservations import DiskUse
from services.kinds.convert import ConvertRequest
from services.kinds.extend_tokenizer import ExtendTokenizerRequest
from services.kinds.import_ import ImportRequest
from services.kinds.merge import MergeRequest
from services.kinds.shared import MakeRequest
from services.merge import Merged, MergeOptions, merge
from services.models.imports import digest_file, import_members
from services.models.lineage import template_of_lineage
from services.models.manifest import (
    InputEntry,
    Manifest,
    TensorEntry,
    new_manifest,
    read_manifest,
    tensor_digest,
    write_manifest,
)
from services.models.store import journal_of
from services.preflight import (
    VERIFIED_FORMATS,
    Plan,
    import_source,
    preflight,
    tokenizer_file,
    weights_digest,
)
from services.progress import Progress
from services.tokenizers import CompletedTokenizer, complete_tokenizer
from services.tokenizers.extend import extend_vocabulary, sample_tokenizations
from services.verify.norms import ChangeNorms, change_norms, nothing_changed
from services.verify.report import verify_merge
from worker.lifecycle import JobContext
from worker.models.reuse import find_identical, link_identical, request_identity

MANIFEST_KINDS: Mapping[OutputFormat, str] = {output: kind for kind, output in VERIFIED_FORMATS.items()}
"""What kind of model each output format makes."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".gguf")
"""Files whose tensors the manifest has digests of, each on its own."""

M = TypeVar("M", ImportRequest, ConvertRequest, MergeRequest, ExtendTokenizerRequest)

ANY_SIZE = 2**63
"""A worker digests weight files of every size before it starts."""


def idempotent(
    make: Callable[[M, JobContext], Mapping[str, Any]],
) -> Callable[[M, JobContext], Mapping[str, Any]]:
    """`make`, save where this very job has published its target already: its worker died between the rename and RQ's
    record of it, and the job was put back."""

    def make_or_find(request: M, context: JobContext) -> Mapping[str, Any]:
        names = context.store.names()
        manifest = read_manifest(context.store.path(request.target)) if request.target in names else None
        if manifest is None or manifest.job_id != context.job_id:
            return make(request, context)
        context.log(f"{request.target} was published by an earlier try of this job")
        return _result(
            request.target,
            context,
            {**manifest.result, "tensor_digest": manifest.digest, "warnings": manifest.warnings},
        )

    return make_or_find


def run_import(request: ImportRequest, context: JobContext) -> Mapping[str, Any]:
    """Takes the files, recognises them, publishes them under the target's name."""
    plan = preflight(request, context.store, {})
    members = import_source(request, context.store, limit_bytes=context.settings.unpack_limit_bytes)
    with _publishing(request, plan, context) as staging:
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


def run_convert(request: ConvertRequest, context: JobContext) -> Mapping[str, Any]:
    """Converts and publishes a checkpoint."""
    plan = preflight(request, context.store, {}, claims=_claims(context))
    source = context.store.path(request.source)
    options = ConvertOptions(
        _dtype(request.dtype), request.max_shard_bytes, request.instruct, request.output_format,
        request.ranks, _template(request, request.source, context),
    )  # fmt: skip
    identity = request_identity(request, options, context.store)
    if not request.force and (same := find_identical(context.store, identity)):
        return _made_before(request, plan, same, context)
    with _publishing(request, plan, context, take_over=True) as staging:
        checkpoint, written = convert(source, staging, options, _watch(context, staging))
        _log_resumed(written, context)
        tokenizer = _completed(staging, request.output_format, instruct=request.instruct)
        warnings = [*plan.warnings, *tokenizer.warnings]
        figures = {**summarize(checkpoint, written), "tokenizer_parity": tokenizer.figures}
        manifest = _manifest(request, written, context, [_input("source", request.source, source)], warnings)
        write_manifest(staging, manifest.model_copy(update={"result": figures, "identity": identity}))
    return _result(
        request.target, context, {**figures, "tensor_digest": manifest.digest, "warnings": warnings}
    )


def run_merge(request: MergeRequest, context: JobContext) -> Mapping[str, Any]:
    """Merges, verifies and publishes; a merge that fails its own check publishes nothing."""
    plan = preflight(request, context.store, {}, digest_limit_bytes=ANY_SIZE, claims=_claims(context))
    base = context.store.path(request.base)
    adapters = [(choice.name, context.store.path(choice.name), choice.scale) for choice in request.adapters]
    options = MergeOptions(
        request.rounding, _dtype(request.dtype), request.max_shard_bytes, request.output_format,
        request.ranks, _template(request, request.base, context),
        # asked here, in the job's own process: one that forks must not touch CUDA
        str(resolve_device(context.settings.device)),
    )  # fmt: skip
    identity = request_identity(request, options, context.store)
    if not request.force and (same := find_identical(context.store, identity)):
        return _made_before(request, plan, same, context)
    with _publishing(request, plan, context, take_over=True) as staging:
        watch = _watch(context, staging)
        merged = merge(base, adapters, staging, options=options, watch=watch)
        _log_resumed(merged.written, context)
        report = verify_merge(merged, options, watch) if request.verify else None
        norms = _norms(merged, watch)
        tokenizer = _completed(staging, request.output_format)
        warnings = [*plan.warnings, *nothing_changed(merged.adapters, norms), *tokenizer.warnings]
        figures = {**_merge_figures(merged, report, norms), "tokenizer_parity": tokenizer.figures}
        inputs = [_input("base", request.base, base), *_adapter_inputs(merged)]
        manifest = _manifest(request, merged.written, context, inputs, warnings)
        write_manifest(staging, manifest.model_copy(update={"result": figures, "identity": identity}))
    return _result(
        request.target, context, {**figures, "tensor_digest": manifest.digest, "warnings": warnings}
    )


def _claims(context: JobContext) -> DiskUse:
    return DiskUse(staged_bytes=context.store.staged_bytes(context.job_id))


def _made_before(
    request: ConvertRequest | MergeRequest, plan: Plan, same: str, context: JobContext
) -> Mapping[str, Any]:
    with _publishing(request, plan, context) as staging:
        figures = link_identical(same, staging, context)
    return _result(request.target, context, figures)


def run_extend_tokenizer(request: ExtendTokenizerRequest, context: JobContext) -> Mapping[str, Any]:
    """Extends a vocabulary and publishes it as a tokenizer, with the files that transformers reads."""
    plan = preflight(request, context.store, {})
    names = {"base": request.base, "addition": request.addition}
    sources = {role: tokenizer_file(context.store, name) for role, name in names.items()}
    with _publishing(request, plan, context) as staging:
        base = sources["base"].read_bytes()
        extended = extend_vocabulary(base, sources["addition"].read_bytes(), pad_token=request.pad_token)
        (staging / "tokenizer.model").write_bytes(extended.model)
        context.report(Progress("extending the vocabulary", extended.added, extended.added, "pieces"))
        context.check_canceled()
        if request.pad_token is not None:
            write_json(staging / "special_tokens_map.json", {"pad_token": request.pad_token})
        tokenizer = complete_tokenizer(staging)
        warnings = [*plan.warnings, *tokenizer.warnings]
        files = {path.name: digest_file(path) for path in sorted(staging.iterdir())}
        figures = {
            "counts": extended.counts, "sha256": files["tokenizer.model"],
            "samples": sample_tokenizations(base, extended.model), "tokenizer_parity": tokenizer.figures,
        }  # fmt: skip
        inputs = [
            InputEntry(role=role, name=name, digest=digest_file(sources[role]))
            for role, name in names.items()
        ]
        manifest = new_manifest(
            kind="tokenizer", operation=request.kind, inputs=inputs, tensors={}, files=files, job_id=context.job_id,
            options={"pad_token": request.pad_token}, warnings=warnings, result=figures,
        )  # fmt: skip
        write_manifest(staging, manifest)
    return _result(request.target, context, {**figures, "warnings": warnings})


def _completed(staging: Path, output_format: OutputFormat, *, instruct: bool = False) -> CompletedTokenizer:
    """Hugging Face's tokenizer files beside the weights; the other layouts have no use for them."""
    if output_format != "huggingface":
        return CompletedTokenizer()
    return complete_tokenizer(staging, instruct=instruct)


def _norms(merged: Merged, watch: WriteHooks) -> list[ChangeNorms]:
    with TensorReader() as reader:
        return change_norms(reader, merged.base, merged.adapters, watch)


def _merge_figures(
    merged: Merged, report: Mapping[str, Any] | None, norms: Sequence[ChangeNorms]
) -> dict[str, Any]:
    accounts = [
        {**account, "rows_added": norm.rows_added, "change_norms": dict(norm.by_kind)}
        for account, norm in zip(merged.accounts, norms, strict=True)
    ]
    return {
        "bytes_read": merged.base.size_bytes, "bytes_written": merged.written.size_bytes,
        "tensors": len(merged.written.plans), "adapters": accounts, "verification": report,
        "vocabulary_size": merged.stack.vocabulary_rows, "device": merged.device, "resumed": merged.written.resumed,
    }  # fmt: skip


@contextmanager
def _publishing(
    request: MakeRequest, plan: Plan, context: JobContext, *, take_over: bool = False
) -> Iterator[Path]:
    """A staging folder, with room for what is planned; with `take_over` it may hold what a killed try of this job has left."""
    target = request.target
    context.reserve_disk(plan.room(context.store.staged_bytes))
    context.log(f"{request.kind} into {target} begins")
    with context.store.publishing(
        target, execution=context.execution, confirm=context.confirm, take_over=take_over
    ) as staging:
        yield staging
    context.log(f"{target} is published")


def _watch(context: JobContext, staging: Path) -> WriteHooks:
    return WriteHooks(context.report, context.check_canceled, journal_of(staging))


def _log_resumed(written: WrittenModel, context: JobContext) -> None:
    if written.kept:
        context.log(
            f"an earlier try of this job had written {len(written.kept)} of {len(written.plans)} tensors "
            f"({written.kept_bytes} bytes): they were checked by their digests and kept"
        )


def _dtype(name: str | None) -> str | None:
    return OUTPUT_DTYPES[name] if name else None


def _template(request: ConvertRequest | MergeRequest, model: str, context: JobContext) -> str | None:
    """The prompt template for GGUF's Modelfile, as far as the names of what goes in tell."""
    adapters = [choice.name for choice in request.adapters] if isinstance(request, MergeRequest) else []
    return template_of_lineage(context.store, model, adapters)


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
    context: JobContext,
    inputs: list[InputEntry],
    warnings: list[str],
) -> Manifest:
    tensors = {
        plan.name: TensorEntry(dtype=plan.dtype, shape=list(plan.shape), sha256=written.digests[plan.name])
        for plan in written.plans
    }
    options = request.model_dump(
        mode="json", exclude={"kind", "after", "metadata", "webhook", "target", "force"}
    )
    base = read_manifest(context.store.path(inputs[0].name))
    earlier = [entry for entry in (base.inputs if base else []) if entry.role == "adapter"]
    return new_manifest(
        kind=MANIFEST_KINDS[request.output_format], operation=request.kind, inputs=[inputs[0], *earlier, *inputs[1:]], tensors=tensors,
        files=_digests_beside(written.folder), options=options, job_id=context.job_id, warnings=list(warnings),
    )  # fmt: skip


def _digests_beside(staging: Path) -> dict[str, str]:
    """SHA-256 of each file beside the weights: configuration and tokenizer are as much of a model as its tensors."""
    files = sorted(path for path in staging.iterdir() if path.suffix not in WEIGHT_SUFFIXES)
    return {path.name: digest_file(path) for path in files}


def _result(target: str, context: JobContext, figures: Mapping[str, Any]) -> dict[str, Any]:
    summary = context.store.describe(target).model_dump(mode="json", exclude={"files", "lineage"})
    return {"model": summary, **figures}
