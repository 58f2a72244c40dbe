"""Preflight of `convert`."""

from services.adapters.adapter import is_adapter
from services.adapters.gguf_adapter import gguf_adapter
from services.adapters.stack import check_stack
from services.architectures.checkpoint import Checkpoint
from services.architectures.output_spec import OUTPUT_DTYPES, output_bytes, output_warnings
from services.errors import UnsupportedOption
from services.kinds.convert import ConvertRequest
from services.preflight.imatrix import planned_imatrix
from services.preflight.output import checked_output, left_out_warnings, planned_write, tokenizer_warnings
from services.preflight.perplexity import check_text_file
from services.preflight.plan import PROCESS_BYTES, Inputs, Plan, PlannedRead, PlannedWrite, deferred_plan

BLOCKS_BYTES = 128 * 2**20
"""Memory of a conversion of any model: some blocks of rows in each of two threads, the tokenizer."""


def plan(request: ConvertRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a conversion, from the source's headers.

    Raises:
        WrongModelKind, UnsupportedOption: the source cannot be converted like this.
        GraftwerkError: any other error that its files give a reason for.
    """
    if inputs.waiting:
        return deferred_plan(request, inputs)
    if is_adapter(inputs.folders[request.source]) or request.base is not None:
        return _adapter_plan(request, inputs)
    if request.measure is not None:
        check_text_file(request.measure.text_file, inputs.store)
    checkpoint = inputs.source(request.source, instruct=request.instruct)
    if request.instruct:
        _require_original_llama_3(request.source, checkpoint)
    if checkpoint.layout == "gguf":
        _require_layout_for_gguf(request, checkpoint)
    output = checked_output(
        request, checkpoint, checkpoint.stored, checkpoint.vocabulary, checkpoint.tokenizer_folder
    )
    imatrix = planned_imatrix(request, output, inputs.store)
    return Plan(
        kind=request.kind,
        reads=[
            PlannedRead(name=request.source, role="source", size_bytes=checkpoint.size_bytes),
            *imatrix.reads,
        ],
        writes=planned_write(request, output),
        output_bytes=output_bytes(output),
        peak_memory_bytes=PROCESS_BYTES + BLOCKS_BYTES + imatrix.memory_bytes,
        warnings=[
            *tokenizer_warnings(checkpoint.tokenizer_folder, output),
            *left_out_warnings(checkpoint.stored, output),
            *output_warnings(output),
            *imatrix.warnings,
        ],
    )


def _require_original_llama_3(name: str, checkpoint: Checkpoint) -> None:
    kind = checkpoint.vocabulary.kind if checkpoint.vocabulary else "no"
    if checkpoint.layout != "meta" or kind != "tiktoken":
        raise UnsupportedOption(
            f"instruct says how turns of an original Llama 3 checkpoint end; {name!r} is of the {checkpoint.layout} "
            f"layout with {kind} tokenizer.",
            "Leave instruct out: this model's own files say it.",
        )


def _require_layout_for_gguf(request: ConvertRequest, checkpoint: Checkpoint) -> None:
    """Refuses a layout that a GGUF file is not converted to: another GGUF file, or one that would lose its tokenizer."""
    hint = 'Ask for output_format "huggingface"; that model can be converted further.'
    if request.output_format == "gguf":
        raise UnsupportedOption(
            f"{request.source!r} is a GGUF file already; values that were rounded once are not rounded again.",
            hint,
        )
    if (
        request.output_format == "meta"
        and checkpoint.vocabulary
        and checkpoint.vocabulary.file == "tokenizer.json"
    ):
        raise UnsupportedOption(
            f"{request.source!r} has a byte-level tokenizer, which Meta's layout cannot hold.", hint
        )


def _adapter_plan(request: ConvertRequest, inputs: Inputs) -> Plan:
    """Returns the plan of an adapter that becomes a GGUF file."""
    adapter = inputs.adapter(request.source)
    if request.output_format != "gguf" or request.base is None:
        raise UnsupportedOption(
            f"{request.source!r} is an adapter; adapters are converted to GGUF only, and with their base.",
            'Ask for output_format "gguf" and name the base with "base", or merge the adapter.',
        )
    base = inputs.base(request.base)
    stack = check_stack(base, [adapter])
    written = gguf_adapter(base, stack.adapters[0], OUTPUT_DTYPES[request.dtype] if request.dtype else None)
    return Plan(
        kind=request.kind,
        reads=[
            PlannedRead.of_adapter(adapter),
            PlannedRead(name=request.base, role="base", size_bytes=base.size_bytes),
        ],
        writes=PlannedWrite(name=request.target, output_format="gguf", tensors=2 * len(adapter.pairs)),
        output_bytes=written.size_bytes,
        peak_memory_bytes=PROCESS_BYTES + 3 * written.size_bytes,
        warnings=list(stack.warnings),
    )
