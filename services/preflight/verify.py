"""Preflight of `verify`."""

from pathlib import Path
from typing import Literal

from services.errors import InvalidRequest, WrongModelKind
from services.kinds.verify import VerifyRequest
from services.models.manifest import read_manifest
from services.models.summary import folder_bytes, kind_of_folder
from services.preflight.output import FORMAT_OF_KIND
from services.preflight.plan import PROCESS_BYTES, Inputs, Plan, PlannedRead, deferred_plan


def plan(request: VerifyRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a verification.

    Raises:
        InvalidRequest: the model has no manifest, and no base was named.
        WrongModelKind: the model is not one that a merge or a conversion makes.
        GraftwerkError: base and adapters do not fit together.
    """
    if inputs.waiting:
        return deferred_plan(request, inputs)
    folder = inputs.folders[request.model]
    model = PlannedRead(name=request.model, role="model", size_bytes=folder_bytes(folder))
    if request.base is None:
        if read_manifest(folder) is None:
            raise InvalidRequest(
                f"{request.model!r} has no manifest.json: its digests are not known.",
                "Name the base (and the adapters) that it was made of, or import it: then its files are digested.",
            )
        return Plan(kind=request.kind, reads=[model], peak_memory_bytes=PROCESS_BYTES)
    kind = kind_of_folder(folder)
    if kind not in FORMAT_OF_KIND:
        raise WrongModelKind(
            f"{request.model!r} is of kind {kind!r}; a merge or conversion makes one of {', '.join(FORMAT_OF_KIND)}.",
            "Name the model that was made.",
        )
    base = inputs.base(request.base, dequantized=base_precision_of(folder) == "dequantized")
    adapters, stack = inputs.stack(base, request.adapters)
    return Plan(
        kind=request.kind,
        reads=[
            model,
            PlannedRead(name=request.base, role="base", size_bytes=base.size_bytes),
            *map(PlannedRead.of_adapter, adapters),
        ],
        peak_memory_bytes=PROCESS_BYTES,
        warnings=list(stack.warnings),
    )


def base_precision_of(folder: Path) -> Literal["original", "dequantized"]:
    """Returns the precision of the base that a model says it was merged into."""
    manifest = read_manifest(folder)
    found = manifest.options.get("base_precision") if manifest else None
    return "dequantized" if found == "dequantized" else "original"
