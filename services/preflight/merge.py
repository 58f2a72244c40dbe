"""Preflight of `merge`: do base and adapters fit together, and in this order?"""

import math
from collections.abc import Sequence
from pathlib import Path

from services.adapters.adapter import Adapter
from services.adapters.stack import merged_tensors
from services.architectures.checkpoint import Checkpoint
from services.architectures.output_spec import output_bytes, output_warnings
from services.architectures.quantized import check_roundable
from services.errors import InvalidRequest, UnsupportedOption, WrongAdapterOrder
from services.kinds.merge import MergeRequest
from services.models.digests import weights_digest
from services.models.known_artifacts import check_known_order
from services.models.manifest import InputEntry, read_manifest
from services.preflight.imatrix import planned_imatrix
from services.preflight.output import checked_output, left_out_warnings, planned_write, tokenizer_warnings
from services.preflight.plan import PROCESS_BYTES, Inputs, Plan, PlannedRead, deferred_plan


def plan(request: MergeRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a merge, from the headers of base and adapters.

    Raises:
        InvalidRequest: two adapters hold the same weights.
        WrongAdapterOrder: an adapter is merged into the base already, or needs another one before it.
        WrongModelKind, AdapterMismatch, VocabularyMismatch, UnsupportedAdapter, UnsupportedOption: they do not fit.
        GraftwerkError: any other error that their files give a reason for.
    """
    if inputs.waiting:
        return deferred_plan(request, inputs)
    base = inputs.base(request.base, dequantized=request.base_precision == "dequantized")
    _check_precisions(request, base)
    adapters, stack = inputs.stack(base, request.adapters)
    merged = _merged_adapters(inputs.folders[request.base])
    _check_lineage(
        request.base, merged, [(a.name, weights_digest(a, inputs.limits.digest_bytes)) for a in adapters]
    )
    tensors = merged_tensors(stack.base, adapters)
    output = checked_output(request, stack.base, tensors, stack.vocabulary, stack.tokenizer_folder)
    imatrix = planned_imatrix(request, output, inputs.store)
    widest = max((pair.shape[0] * pair.shape[1] for a in adapters for pair in a.pairs.values()), default=0)
    return Plan(
        kind=request.kind,
        reads=[
            PlannedRead(name=request.base, role="base", size_bytes=base.size_bytes),
            *map(PlannedRead.of_adapter, adapters),
            *imatrix.reads,
        ],
        writes=planned_write(request, output).model_copy(
            update={"vocabulary_size": stack.vocabulary_rows, "tokenizer_of": stack.tokenizer_folder.name}
        ),
        output_bytes=output_bytes(output),
        peak_memory_bytes=PROCESS_BYTES + 2 * (4 + 2 + 2) * widest + _rounding_bytes(request, base) + imatrix.memory_bytes,
        warnings=[
            *stack.warnings, *_merged_warnings(request.base, merged), *tokenizer_warnings(stack.tokenizer_folder, output),
            *_scale_warnings(request, adapters), *left_out_warnings(tensors, output), *output_warnings(output), *imatrix.warnings,
        ],
    )  # fmt: skip


def _check_precisions(request: MergeRequest, base: Checkpoint) -> None:
    if request.base_precision == "dequantized" or request.compare_precisions:
        check_roundable(base.config.model_class, request.base)
    if request.compare_precisions and any(source.four_bit for source in base.tensors.values()):
        raise UnsupportedOption(
            f"compare_precisions needs the original weights; {request.base} is stored in 4 bits.",
            "Leave compare_precisions out, or merge into the original.",
        )


def _rounding_bytes(request: MergeRequest, base: Checkpoint) -> int:
    """Returns the peak memory of rounding to 4 bits and back: three copies in float32 of the widest tensor of two threads."""
    if request.base_precision == "original" and not request.compare_precisions:
        return 0
    return 2 * 3 * 4 * max(math.prod(source.shape) for source in base.tensors.values())


def _merged_adapters(base: Path) -> list[InputEntry]:
    manifest = read_manifest(base)
    return [entry for entry in (manifest.inputs if manifest else []) if entry.role == "adapter"]


def _merged_warnings(base: str, merged: Sequence[InputEntry]) -> list[str]:
    """Returns a warning if the base has adapters merged in: others are meant for the base that they were trained on."""
    names = ", ".join(entry.name for entry in merged)
    return [f"{base} has {names} merged in already"] if merged else []


def _scale_warnings(request: MergeRequest, adapters: Sequence[Adapter]) -> list[str]:
    return [
        f"scale {choice.scale} applies to the LoRA pairs of {choice.name}; {', '.join(sorted(adapter.replaced))} are "
        "replaced whole"
        for choice, adapter in zip(request.adapters, adapters, strict=True)
        if choice.scale != 1 and adapter.replaced
    ]


def _check_lineage(
    base: str, merged: Sequence[InputEntry], adapters: Sequence[tuple[str, str | None]]
) -> None:
    """Checks the order of published adapters, and that none is merged a second time."""
    digests = [entry.digest for entry in merged if entry.digest]
    names: dict[str, str] = {}
    for name, digest in adapters:
        if digest is not None and names.setdefault(digest, name) != name:
            raise InvalidRequest(
                f"Adapters {names[digest]} and {name} hold the same weights.",
                "Name one of them; use its scale instead.",
            )
        if digest is not None and digest in digests:
            raise WrongAdapterOrder(
                f"Adapter {name} is merged into {base} already.",
                "Leave it out, or start from the base without it.",
                order=[other for other, own in adapters if own not in digests],
            )
    check_known_order(adapters, digests)
