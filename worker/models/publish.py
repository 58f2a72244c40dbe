"""Publication of a model: staging folder, manifest, one rename, and the job's result."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from services.adapter_tools import WrittenAdapter
from services.architectures.output_spec import OUTPUT_DTYPES, OutputFormat
from services.checkpoints.folder_spec import WrittenModel
from services.checkpoints.write_hooks import WriteHooks
from services.errors import UnreadableTokenizer
from services.files.gguf_origin import GgufOrigin
from services.jobs.disk_reservations import DiskUse
from services.kinds.convert import ConvertRequest
from services.kinds.made_model import MadeModel
from services.kinds.merge import MergeRequest
from services.kinds.model_summary import ModelSummary
from services.kinds.shared import JobRequest, MakeRequest
from services.models.digests import digest_file, model_digest
from services.models.lineage import template_of_lineage
from services.models.made_origin import made_origin
from services.models.manifest import (
    InputEntry,
    Manifest,
    TensorEntry,
    new_manifest,
    read_manifest,
    write_manifest,
)
from services.models.model_card import write_model_card
from services.models.staging import journal_of
from services.preflight import Limits, Plan, Servers, preflight
from services.preflight.output import FORMAT_OF_KIND
from services.tokenizers import CompletedTokenizer, add_chat_template, complete_tokenizer
from worker.lifecycle import JobContext

MANIFEST_KINDS: Mapping[OutputFormat, str] = {output: kind for kind, output in FORMAT_OF_KIND.items()}
"""Kind of model that each output format makes."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".gguf")
"""Files whose tensors each have a digest of their own in the manifest."""

ANY_SIZE = 2**63
"""Digest limit of a worker: it digests weight files of every size before it starts."""

Q = TypeVar("Q", bound=MakeRequest)
R = TypeVar("R", bound=MadeModel)
Run = Callable[[Q, JobContext], R]


def idempotent(result_class: type[R]) -> Callable[[Run[Q, R]], Run[Q, R]]:
    """Returns a decorator for a kind's `run` that returns the model that this very job has published before.

    A worker can die between the rename and RQ's record of the result; the job then runs again and finds its target.
    """

    def decorate(run: Run[Q, R]) -> Run[Q, R]:
        @wraps(run)
        def run_or_find(request: Q, context: JobContext) -> R:
            manifest = _manifest_of_target(request, context)
            if manifest is None or manifest.job_id != context.execution.job_id:
                return run(request, context)
            context.execution.log(f"{request.target} was published by an earlier try of this job")
            return made_result(result_class, request, context, manifest)

        return run_or_find

    return decorate


def _manifest_of_target(request: MakeRequest, context: JobContext) -> Manifest | None:
    store = context.store
    return read_manifest(store.path(request.target)) if request.target in store.names() else None


def made_result(result_class: type[R], request: MakeRequest, context: JobContext, manifest: Manifest) -> R:
    """Returns the result of a job from the manifest of the model that it has published."""
    summary = context.store.describe(request.target).model_dump(exclude={"files", "lineage"})
    figures: dict[str, Any] = {**manifest.result, "warnings": manifest.warnings}
    if manifest.digest is not None:
        figures["tensor_digest"] = manifest.digest
    return result_class.model_validate({"model": ModelSummary.model_validate(summary), **figures})


def planned(request: JobRequest, context: JobContext) -> Plan:
    """Runs the preflight again: the volume may have changed since the submission. Raises what `preflight` raises.

    Bytes that earlier executions of this job have staged count as free.
    """
    limits = Limits(digest_bytes=ANY_SIZE, unpack_bytes=context.settings.unpack_limit_bytes)
    staged_bytes = context.store.staging.bytes_of(context.execution.job_id)
    plan = preflight(
        request, context.store, (), limits=limits, servers=Servers(hub=context.hub),
        disk_use=DiskUse(staged_bytes=staged_bytes),
    )  # fmt: skip
    context.execution.require_memory(plan.peak_memory_bytes)
    return plan


@contextmanager
def publishing(
    request: MakeRequest, plan: Plan, context: JobContext, *, take_over: bool = False
) -> Iterator[Path]:
    """Reserves the planned bytes and yields a staging folder that becomes the target.

    Args:
        take_over: the folder may hold what a killed execution of this job has left.
    """
    target = request.target
    context.execution.reserve_disk(plan.disk_need)
    context.execution.log(f"{request.kind} into {target} begins")
    with context.store.publishing(
        target,
        execution=context.execution.name,
        confirm=context.execution.ensure_current,
        take_over=take_over,
    ) as staging:
        yield staging
    context.execution.log(f"{target} is published")


def write_hooks(context: JobContext, staging: Path) -> WriteHooks:
    """Returns the hooks by which a writer reports, stops and journals."""
    return WriteHooks(context.execution.report, context.execution.check_canceled, journal_of(staging))


def log_resumed(written: WrittenModel, context: JobContext) -> None:
    """Writes to the job's log how much of an earlier execution was reused."""
    if written.reused:
        context.execution.log(
            f"an earlier try of this job had written {len(written.reused)} of {len(written.plans)} tensors "
            f"({written.reused_bytes} bytes): they were checked by their digests and reused"
        )


def output_dtype(request: ConvertRequest | MergeRequest) -> str | None:
    """Returns safetensors' code of the requested dtype, None to keep each tensor's own."""
    return OUTPUT_DTYPES[request.dtype] if request.dtype else None


def gguf_figures(request: ConvertRequest | MergeRequest, written: WrittenModel) -> dict[str, Any]:
    """Returns the figures of a result that only GGUF outputs have."""
    return {"bits_per_weight": written.bits_per_weight} if request.output_format == "gguf" else {}


def output_template(context: JobContext, model: str, adapters: list[str] | None = None) -> str | None:
    """Returns the prompt template of the model, as far as the names of the inputs imply one."""
    return template_of_lineage(context.store, model, adapters or [])


def output_origin(request: ConvertRequest | MergeRequest, context: JobContext) -> GgufOrigin | None:
    """Returns name, licence and base models for a GGUF file's metadata; other outputs have a model card alone."""
    return made_origin(context.store, request.reads) if request.output_format == "gguf" else None


def completed_tokenizer(
    staging: Path, output_format: OutputFormat, template: str | None, *, instruct: bool = False
) -> CompletedTokenizer:
    """Writes Hugging Face's tokenizer files next to the weights; the other layouts do not use them.

    Args:
        template: name of the template of the model's lineage, the chat template of a model that has none.
    """
    if output_format != "huggingface":
        return CompletedTokenizer()
    completed = complete_tokenizer(staging, instruct=instruct)
    if template is None:
        return completed
    try:
        add_chat_template(staging, template)
    except UnreadableTokenizer as error:
        warning = f"The chat template {template} was not written: {error.message}"
        return CompletedTokenizer(completed.parity, (*completed.warnings, warning))
    return completed


def input_entry(role: str, name: str, folder: Path) -> InputEntry:
    """Returns the manifest entry of an input model."""
    manifest = read_manifest(folder)
    return InputEntry(role=role, name=name, digest=model_digest(manifest) if manifest else None)


def checkpoint_manifest(
    request: ConvertRequest | MergeRequest,
    written: WrittenModel,
    context: JobContext,
    inputs: list[InputEntry],
    **more: Any,
) -> Manifest:
    """Returns the manifest of a written checkpoint; the first input passes its own adapters on.

    Args:
        more: `warnings`, `result`, `origin` and `identity` of the manifest.
    """
    tensors = {
        plan.name: TensorEntry(dtype=plan.dtype, shape=list(plan.shape), sha256=written.digests[plan.name])
        for plan in written.plans
    }
    base = read_manifest(context.store.path(inputs[0].name))
    earlier = [entry for entry in (base.inputs if base else []) if entry.role == "adapter"]
    return new_manifest(
        kind=MANIFEST_KINDS[request.output_format], operation=request.kind, inputs=[inputs[0], *earlier, *inputs[1:]],
        tensors=tensors, files=_digests_of_small_files(written.folder), options=_options(request), job_id=context.execution.job_id, **more,
    )  # fmt: skip


def write_description(staging: Path, manifest: Manifest, context: JobContext) -> Manifest:
    """Writes the model card and then the manifest of a made model; returns the manifest, which has the card's digest."""
    described = write_model_card(staging, manifest, context.store)
    write_manifest(staging, described)
    return described


def adapter_manifest(
    request: MakeRequest, written: WrittenAdapter, context: JobContext, inputs: list[InputEntry], **more: Any
) -> Manifest:
    """Returns the manifest of a written adapter: digests of its tensors, and of every file, by which adapters are recognized.

    Args:
        more: `warnings` and `result` of the manifest.
    """
    tensors = {
        plan.name: TensorEntry(dtype=plan.dtype, shape=list(plan.shape), sha256=written.digests[plan.name])
        for plan in written.plans
    }
    files = {path.name: digest_file(path) for path in sorted(written.folder.iterdir())}
    return new_manifest(
        kind="adapter", operation=request.kind, inputs=inputs, tensors=tensors, files=files,
        options=_options(request), job_id=context.execution.job_id, **more,
    )  # fmt: skip


def _options(request: MakeRequest) -> dict[str, Any]:
    return request.model_dump(
        mode="json", exclude={"kind", "after", "metadata", "webhook", "target", "force"}
    )


def _digests_of_small_files(staging: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file next to the weights: they are as much of a model as its tensors."""
    files = sorted(
        path for path in staging.rglob("*") if path.is_file() and path.suffix not in WEIGHT_SUFFIXES
    )
    return {str(path.relative_to(staging)): digest_file(path) for path in files}
