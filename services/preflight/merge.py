"""Conversions, merges and their check: whether the inputs fit together, and what comes out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from services.adapters.adapter import Adapter
from services.adapters.stack import check_scales, check_stack, merged_tensors
from services.architectures.checkpoint import Checkpoint
from services.architectures.key_map import Shape
from services.architectures.output_spec import (
    OUTPUT_DTYPES,
    OutputFormat,
    OutputSpec,
    check_output,
    output_bytes,
    output_warnings,
    plan_output,
)
from services.architectures.vocabulary import Vocabulary
from services.errors import (
    InvalidRequest,
    UnsupportedOption,
    WrongAdapterOrder,
    WrongModelKind,
)
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.kinds.verify import VerifyRequest
from services.models.imports import digest_file
from services.models.known_artifacts import check_known_order
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.models.summary import folder_bytes, kind_of_folder
from services.preflight.plan import PROCESS_BYTES, Plan, adapter_named, base_model, reading

HASHED_BYTES = 64 * 2**20
"""Weight files up to this size are digested at submission; larger ones when the job starts."""

BLOCKS_BYTES = 128 * 2**20
"""What a conversion takes beside that, whatever the model: some blocks of rows in each of two threads, the tokenizer."""

VERIFIED_FORMATS: Mapping[str, OutputFormat] = {
    "huggingface": "huggingface", "original": "meta", "gguf": "gguf",
}  # fmt: skip
"""The kinds of model that conversions and merges make, and the output format that each is of."""


def _checked_output(
    request: ConvertRequest | MergeRequest,
    base: Checkpoint,
    tensors: Mapping[str, tuple[str, Shape]],
    vocabulary: Vocabulary | None,
) -> OutputSpec:
    """What the request would write.

    Raises:
        UnsupportedOption, UnsupportedFormat, VocabularyMismatch: the format cannot hold it.
    """
    rows = tensors["model.embed_tokens.weight"][1][0]
    output = plan_output(
        request.output_format, replace(base.config, vocab_size=rows), tensors, vocabulary=vocabulary,
        dtype=OUTPUT_DTYPES[request.dtype] if request.dtype else None, ranks=request.ranks or base.ranks,
    )  # fmt: skip
    check_output(output)
    return output


def plan_convert(request: ConvertRequest, store: ModelStore) -> Plan:
    checkpoint = base_model(store, request.source, instruct=request.instruct)
    if request.instruct:
        _need_original_llama_3(request.source, checkpoint)
    output = _checked_output(request, checkpoint, checkpoint.stored, checkpoint.vocabulary)
    return Plan(
        kind="convert",
        reads=[reading(request.source, "source", checkpoint.size_bytes)],
        writes=_writes(request, output),
        output_bytes=output_bytes(output),
        peak_memory_bytes=PROCESS_BYTES + BLOCKS_BYTES,
        warnings=[*_tokenizer_warnings(checkpoint, output), *output_warnings(output)],
    )


def _need_original_llama_3(name: str, checkpoint: Checkpoint) -> None:
    kind = checkpoint.vocabulary.kind if checkpoint.vocabulary else "no"
    if checkpoint.layout != "meta" or kind != "tiktoken":
        raise UnsupportedOption(
            f"instruct says how turns of an original Llama 3 checkpoint end; {name!r} is of the {checkpoint.layout} "
            f"layout with {kind} tokenizer",
            "Leave instruct out: this model's own files say it.",
        )


def _writes(request: ConvertRequest | MergeRequest, output: OutputSpec) -> dict[str, Any]:
    ranks = {"ranks": output.ranks} if output.format == "meta" else {}
    return {"name": request.target, "output_format": output.format, "tensors": len(output.tensors), **ranks}


def _tokenizer_warnings(base: Checkpoint, output: OutputSpec) -> list[str]:
    if output.vocabulary is not None:
        return []
    if (base.tokenizer_folder / "tokenizer.json").is_file():
        return ["Meta's layout has no tokenizer.json: the output will have no tokenizer"] * (
            output.format == "meta"
        )
    return ["no tokenizer.model beside the weights or one level up: the output will have no tokenizer"]


def plan_merge(request: MergeRequest, store: ModelStore, digest_limit_bytes: int) -> Plan:
    base = base_model(store, request.base)
    adapters = [adapter_named(store, choice.name) for choice in request.adapters]
    stack = check_stack(base, adapters)
    check_scales([(a, choice.scale) for a, choice in zip(adapters, request.adapters, strict=True)])
    digests = [(a.name, weights_digest(a, digest_limit_bytes)) for a in adapters]
    _check_lineage(request, store, digests)
    output = _checked_output(request, base, merged_tensors(base, adapters), stack.vocabulary)
    widest = max((pair.shape[0] * pair.shape[1] for a in adapters for pair in a.pairs.values()), default=0)
    return Plan(
        kind="merge",
        reads=[
            reading(request.base, "base", base.size_bytes),
            *(reading(adapter.name, "adapter", adapter.weights.stat().st_size) for adapter in adapters),
        ],
        writes={
            **_writes(request, output),
            "vocabulary_size": stack.vocabulary_rows, "tokenizer_of": stack.tokenizer_folder.name,
        },
        output_bytes=output_bytes(output),
        peak_memory_bytes=PROCESS_BYTES + 2 * (4 + 2 + 2) * widest,
        warnings=[
            *stack.warnings, *_merged_before(request, store), *_tokenizer_warnings(base, output),
            *_scale_warnings(request, adapters), *output_warnings(output),
        ],
    )  # fmt: skip


def _merged_before(request: MergeRequest, store: ModelStore) -> list[str]:
    """What stands in the base already: adapters are meant for the base that they were trained on."""
    manifest = read_manifest(store.path(request.base))
    names = [entry.name for entry in (manifest.inputs if manifest else []) if entry.role == "adapter"]
    return [f"{request.base} has {', '.join(names)} merged in already"] if names else []


def _scale_warnings(request: MergeRequest, adapters: list[Adapter]) -> list[str]:
    return [
        f"scale {choice.scale} applies to the LoRA pairs of {choice.name}; {', '.join(sorted(adapter.replaced))} are "
        "replaced whole"
        for choice, adapter in zip(request.adapters, adapters, strict=True)
        if choice.scale != 1 and adapter.replaced
    ]


def weights_digest(adapter: Adapter, limit_bytes: int) -> str | None:
    """The SHA-256 of an adapter's weight file: from its manifest, or computed where it is small enough."""
    manifest = read_manifest(adapter.folder)
    recorded = manifest.files.get(adapter.weights.name) if manifest else None
    if recorded is not None or adapter.weights.stat().st_size > limit_bytes:
        return recorded
    return digest_file(adapter.weights)


def _check_lineage(request: MergeRequest, store: ModelStore, digests: list[tuple[str, str | None]]) -> None:
    """Published adapters have their order; what the base has merged already is not merged again."""
    manifest = read_manifest(store.path(request.base))
    merged = [e.digest for e in (manifest.inputs if manifest else []) if e.role == "adapter" and e.digest]
    names: dict[str, str] = {}
    for name, digest in digests:
        if digest is not None and names.setdefault(digest, name) != name:
            raise InvalidRequest(
                f"adapters {names[digest]} and {name} hold the same weights",
                "Name one of them; use its scale instead.",
            )
        if digest is not None and digest in merged:
            raise WrongAdapterOrder(
                f"adapter {name} is merged into {request.base} already",
                "Leave it out, or start from the base without it.",
            )
    check_known_order(digests, merged)


def plan_verify(request: VerifyRequest, store: ModelStore) -> Plan:
    folder = store.path(request.model)
    kind = kind_of_folder(folder)
    if request.base is None:
        if read_manifest(folder) is None:
            raise InvalidRequest(
                f"{request.model!r} has no manifest.json: its digests are not known",
                "Name the base (and the adapters) that it was made of, or import it: then its files are digested.",
            )
        return Plan(
            kind="verify",
            reads=[reading(request.model, "model", folder_bytes(folder))],
            peak_memory_bytes=PROCESS_BYTES,
        )
    if kind not in VERIFIED_FORMATS:
        raise WrongModelKind(
            f"{request.model!r} is of kind {kind!r}, a merge or conversion makes one of {', '.join(VERIFIED_FORMATS)}",
            "Name the model that was made.",
        )
    base = base_model(store, request.base)
    adapters = [adapter_named(store, choice.name) for choice in request.adapters]
    stack = check_stack(base, adapters)
    check_scales([(a, choice.scale) for a, choice in zip(adapters, request.adapters, strict=True)])
    return Plan(
        kind="verify",
        reads=[
            reading(request.model, "model", folder_bytes(folder)),
            reading(request.base, "base", base.size_bytes),
            *(reading(adapter.name, "adapter", adapter.weights.stat().st_size) for adapter in adapters),
        ],
        peak_memory_bytes=PROCESS_BYTES,
        warnings=list(stack.warnings),
    )
