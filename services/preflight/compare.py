"""Preflight of `compare`."""

from services.kinds.compare import CompareRequest
from services.preflight.generate import check_prompts, check_tools
from services.preflight.loaded_model import plan_loaded_model
from services.preflight.plan import Inputs, Plan, deferred_plan


def plan(request: CompareRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a comparison. The variants run one after another: the largest determines the memory.

    Raises:
        GraftwerkError: an error of one of the variants, as for `generate`.
    """
    requests = [request.request_for(variant, seed=None) for variant in request.variants]
    check_prompts(requests[0], inputs.store)
    if inputs.waiting:
        return deferred_plan(request, inputs)
    for variant in requests if request.is_call_required else ():
        check_tools(variant, inputs.folders[variant.model])
    plans = [plan_loaded_model(variant, inputs) for variant in requests]
    reads = {(read.name, read.role): read for plan in plans for read in plan.reads}
    return Plan(
        kind=request.kind,
        reads=list(reads.values()),
        engine=plans[0].engine,
        peak_memory_bytes=max(plan.peak_memory_bytes for plan in plans),
        kv_cache_bytes=max((plan.kv_cache_bytes or 0 for plan in plans), default=0) or None,
        warnings=list(dict.fromkeys(warning for plan in plans for warning in plan.warnings)),
    )
