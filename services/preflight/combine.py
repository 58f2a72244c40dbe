"""Preflight of `combine`: do the adapters fit each other?"""

from collections.abc import Sequence

from services.adapters.adapter import Adapter
from services.adapters.combination import Combination, check_combination
from services.errors import InvalidRequest
from services.kinds.combine import CombineRequest
from services.models.digests import weights_digest
from services.preflight.adapter_tools import KEPT_BYTES, factor_bytes
from services.preflight.plan import PROCESS_BYTES, Inputs, Plan, PlannedRead, PlannedWrite, deferred_plan


def plan(request: CombineRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a combination.

    Raises:
        WrongModelKind: an input is not an adapter.
        InvalidRequest: two adapters hold the same weights, or the rank is larger than the sum of the ranks.
        UnsupportedAdapter, AdapterMismatch, VocabularyMismatch: they do not fit each other.
        GraftwerkError: any other error that their files give a reason for.
    """
    if inputs.waiting:
        return deferred_plan(request, inputs)
    adapters = [inputs.adapter(choice.name) for choice in request.adapters]
    limit = inputs.limits.digest_bytes
    scaled = [(a, choice.scale) for a, choice in zip(adapters, request.adapters, strict=True)]
    combination = check_combination(scaled, compared_bytes=limit)
    _check_weights(adapters, limit)
    _check_rank(request, combination)
    rank, tokenizer = request.rank or combination.rank, combination.tokenizer_folder
    shapes = [module.shape for module in combination.modules]
    sparse = KEPT_BYTES if request.method in ("ties", "dare") else 0
    return Plan(
        kind=request.kind,
        reads=[*map(PlannedRead.of_adapter, adapters)],
        writes=PlannedWrite(
            name=request.target, tensors=2 * len(shapes) + len(combination.whole),
            tokenizer_of=tokenizer.name if tokenizer else None,
        ),
        output_bytes=sum(4 * rank * sum(shape) for shape in shapes) + sum(t.header.size_bytes for t in combination.whole),
        peak_memory_bytes=PROCESS_BYTES + sparse + factor_bytes(shapes, max(rank, combination.rank)),
        warnings=list(combination.warnings),
    )  # fmt: skip


def _check_weights(adapters: Sequence[Adapter], digest_bytes: int) -> None:
    names: dict[str, str] = {}
    for adapter in adapters:
        digest = weights_digest(adapter, digest_bytes)
        if digest is not None and names.setdefault(digest, adapter.name) != adapter.name:
            raise InvalidRequest(
                f"Adapters {names[digest]} and {adapter.name} hold the same weights.",
                "Name one of them; use its scale instead.",
            )


def _check_rank(request: CombineRequest, combination: Combination) -> None:
    """Refuses a rank that a sum cannot use; `ties` and `dare` can use any up to the size of the weights."""
    largest = max((min(module.shape) for module in combination.modules), default=0)
    limit = largest if request.method in ("ties", "dare") else combination.rank
    if request.rank is not None and request.rank > limit:
        raise InvalidRequest(
            f"The rank {request.rank} is larger than {limit}, the largest that the result of {request.method!r} can have.",
            "Leave the rank out, or choose a smaller one.",
        )
