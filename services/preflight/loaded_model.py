"""Plan of a job that runs a loaded model, for all kinds that do."""

from services.adapters.stack import Stack
from services.adapters.unmerged import merge_reason, unmerged_elements
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.config import ModelConfig
from services.errors import NotReady, VocabularyMismatch, WrongModelKind
from services.generate_engines import Engine
from services.kinds.generate import GenerateRequest
from services.kinds.shared import ModelRequest
from services.models.summary import kind_of_folder
from services.preflight.gguf_model import plan_gguf_model
from services.preflight.plan import (
    PROCESS_BYTES,
    Inputs,
    Plan,
    PlannedRead,
    convert_first,
    deferred_plan,
)
from services.preflight.vllm import check_vllm


def plan_loaded_model(request: ModelRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a model and its adapters, loaded together.

    Raises:
        NotReady: no worker has the engine.
        WrongModelKind: the model is not a Hugging Face model, or an adapter is not one.
        VocabularyMismatch: the model has no tokenizer.
        UnsupportedOption: the engine does not have an option of the request.
        GraftwerkError: any other error that their files give a reason for.
    """
    if inputs.waiting:
        return deferred_plan(request, inputs)
    folder = inputs.folders[request.model]
    found = kind_of_folder(folder)
    if found == "gguf":
        return plan_gguf_model(request, inputs)
    engine: Engine | None = "graftwerk"
    if isinstance(request, GenerateRequest):
        engine = inputs.engines.of(found)
    if found != "huggingface":
        raise WrongModelKind(
            f"{request.model!r} is of kind {found!r}; text is generated from a huggingface model.",
            convert_first(request.model) if found == "original" else "Merge the adapter into a base first.",
        )
    if engine is None:
        raise NotReady(
            f"No worker has the engine {inputs.engines.setting!r}, which GENERATE_ENGINE names.",
            "Start a generate worker that has it, or unset GENERATE_ENGINE.",
        )
    checkpoint = read_checkpoint(folder)
    if checkpoint.vocabulary is None:
        raise VocabularyMismatch(
            f"{request.model!r} has no tokenizer (tokenizer.model or tokenizer.json).",
            "Add the model's tokenizer files.",
        )
    adapters, stack = inputs.stack(checkpoint, request.adapters)
    is_unmerged = engine == "graftwerk" and isinstance(request, GenerateRequest) and request.applies_unmerged
    elements, warnings = _unmerged(stack) if is_unmerged else (0, [])
    if engine == "vllm" and isinstance(request, GenerateRequest):
        warnings = check_vllm(request, stack, inputs.engines.adapter_rank)
    kv_bytes = _kv_bytes(request, checkpoint.config) if engine == "graftwerk" else None
    cache_bytes = inputs.engines.vllm_cache_bytes if engine == "vllm" else kv_bytes or 0
    return Plan(
        kind=request.kind,
        reads=[
            PlannedRead(name=request.model, role="model", size_bytes=checkpoint.size_bytes),
            *map(PlannedRead.of_adapter, adapters),
        ],
        engine=engine,
        peak_memory_bytes=PROCESS_BYTES + (checkpoint.parameters + elements) * 4 + cache_bytes,
        kv_cache_bytes=kv_bytes,
        warnings=[*stack.warnings, *warnings],
    )


def _unmerged(stack: Stack) -> tuple[int, list[str]]:
    """Returns the number of elements that unmerged adapters add to their base, and a warning if a merged copy is needed."""
    reason = merge_reason(stack)
    if reason is None:
        return unmerged_elements(stack), []
    return 0, [f"The adapters are merged into a copy of the model: {reason}."]


def _kv_bytes(request: ModelRequest, config: ModelConfig) -> int | None:
    """Returns the bytes of the keys and values that one output of a generate job certainly needs, in float32."""
    if not isinstance(request, GenerateRequest):
        return None
    tokens = len(request.prompt_token_ids or [0])
    if not request.fit_context:
        tokens += request.sampling.max_new_tokens
    tokens = min(tokens, config.max_position_embeddings) * request.sampling.num_beams
    return tokens * kv_bytes_of_token(config)


def kv_bytes_of_token(config: ModelConfig) -> int:
    """Returns the bytes of the keys and values of one token in float32."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
