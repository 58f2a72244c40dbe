"""Preflight of `extract`: can an adapter hold the difference of the two models?"""

from services.adapters.extraction import plan_extraction
from services.kinds.extract import ExtractRequest
from services.preflight.adapter_tools import factor_bytes
from services.preflight.plan import PROCESS_BYTES, Inputs, Plan, PlannedRead, PlannedWrite, deferred_plan


def plan(request: ExtractRequest, inputs: Inputs) -> Plan:
    """Returns the plan of an extraction, for the case that every tensor differs.

    Raises:
        WrongModelKind: base or model is not an original or a Hugging Face model.
        InvalidRequest: they do not belong together, or the rank is too large.
        VocabularyMismatch: the model's vocabulary does not continue the base's.
        GraftwerkError: any other error that their files give a reason for.
    """
    if inputs.waiting:
        return deferred_plan(request, inputs)
    base, model = inputs.base(request.base), inputs.base(request.model)
    extraction = plan_extraction(base, model, request.rank)
    shapes = [pair.shape for pair in extraction.tensors if pair.low_rank]
    grown = extraction.tokenizer_folder
    return Plan(
        kind=request.kind,
        reads=[
            PlannedRead(name=request.base, role="base", size_bytes=base.size_bytes),
            PlannedRead(name=request.model, role="model", size_bytes=model.size_bytes),
        ],
        writes=PlannedWrite(
            name=request.target, vocabulary_size=extraction.vocabulary_rows,
            tokenizer_of=request.model if grown else None,
        ),
        output_bytes=extraction.output_bytes(request.rank),
        peak_memory_bytes=PROCESS_BYTES + factor_bytes(shapes, request.rank),
        warnings=list(extraction.warnings),
    )  # fmt: skip
