"""What loaded models are asked: generate, compare, embed, perplexity."""

from services.adapters.stack import check_scales, check_stack
from services.architectures.checkpoint_reader import read_checkpoint
from services.backend import ServedModel, check_forwardable
from services.errors import (
    InvalidRequest,
    ModelNotFound,
    UnreadableFile,
    VocabularyMismatch,
    WrongModelKind,
)
from services.kinds.compare import CompareRequest
from services.kinds.embed import EmbedRequest
from services.kinds.generate import GenerateRequest
from services.kinds.perplexity import PerplexityRequest
from services.models.prompt_file import read_prompt_file
from services.models.store import ModelStore
from services.models.summary import kind_of_folder
from services.names import is_model_name
from services.preflight.plan import PROCESS_BYTES, Plan, adapter_named, later, reading
from services.templates import OWN_TEMPLATE, check_text, find_template

ResidentRequest = GenerateRequest | CompareRequest | EmbedRequest | PerplexityRequest

PARSED_BYTES = 16 * 2**20
"""Files of prompts up to this size are read at submission; larger ones when the job starts."""

SCORED_TEXT_BYTES = 16 * 2**20
"""Longest text that one perplexity job takes; the test text of WikiText-103 has 1.3 MB."""


def check_asked(request: ResidentRequest, store: ModelStore) -> None:
    """What the texts and files of a request are refused for, whoever answers it."""
    match request:
        case GenerateRequest():
            if request.prompts_file is not None:
                _check_prompt_file(request.prompts_file, store)
            if request.template not in (None, OWN_TEMPLATE):
                find_template(request.template)
            for text in _texts(request):
                check_text(text)
        case EmbedRequest():
            for text in request.inputs:
                check_text(text)
        case PerplexityRequest():
            _check_scored_text(request, store)
        case CompareRequest():
            check_asked(request.request_for(request.variants[0], seed=None), store)


def plan_forwarded(request: GenerateRequest, model: ServedModel) -> Plan:
    check_forwardable(request, model)
    return Plan(kind=request.kind, reads=[{"name": model.id, "role": "model", "backend": model.server}])


def need_name_of_the_shelf(name: str) -> None:
    if not is_model_name(name):
        raise ModelNotFound(
            f"no model is named {name!r}: on the shelf no name has these characters",
            "Check the name: GET /v1/models also lists what the server of GENERATE_BACKEND_URL has.",
        )


def _check_scored_text(request: PerplexityRequest, store: ModelStore) -> None:
    if request.text is not None:
        check_text(request.text)
    if request.text_file is None:
        return
    path = store.incoming(request.text_file)
    if not path.is_file():
        raise InvalidRequest(f"{request.text_file!r} is no file", "Name a UTF-8 text file.")
    size_bytes = path.stat().st_size
    if size_bytes > SCORED_TEXT_BYTES:
        raise InvalidRequest(
            f"{request.text_file!r} has {size_bytes} bytes, at most {SCORED_TEXT_BYTES} are scored in one job",
            "Score a part of it.",
        )


def plan_answering(
    request: GenerateRequest | EmbedRequest | PerplexityRequest, store: ModelStore, waiting: list[str]
) -> Plan:
    """The plan of what a loaded model answers."""
    kind = request.kind
    if waiting:
        return later(request, waiting)
    folder = store.path(request.model)
    found = kind_of_folder(folder)
    if found != "huggingface":
        raise WrongModelKind(
            f"{request.model!r} is of kind {found!r}, text is generated from a huggingface model",
            "Convert it first." if found == "original" else "Merge the adapter into a base first.",
        )
    checkpoint = read_checkpoint(folder)
    if checkpoint.vocabulary is None and not (folder / "tokenizer.json").is_file():
        raise VocabularyMismatch(
            f"{request.model!r} has no tokenizer (tokenizer.model or tokenizer.json)",
            "Add the model's tokenizer files.",
        )
    adapters = [adapter_named(store, choice.name) for choice in request.adapters]
    stack = check_stack(checkpoint, adapters)
    check_scales([(a, choice.scale) for a, choice in zip(adapters, request.adapters, strict=True)])
    return Plan(
        kind=kind,
        reads=[
            reading(request.model, "model", checkpoint.size_bytes),
            *(reading(adapter.name, "adapter", adapter.weights.stat().st_size) for adapter in adapters),
        ],
        peak_memory_bytes=PROCESS_BYTES + checkpoint.parameters * 4,
        warnings=list(stack.warnings),
    )


def plan_compare(request: CompareRequest, store: ModelStore, waiting: list[str]) -> Plan:
    """The variants run one after another: the largest one says how much memory is needed."""
    askings = [request.request_for(variant, seed=None) for variant in request.variants]
    if waiting:
        return later(request, waiting)
    plans = [plan_answering(asking, store, []) for asking in askings]
    reads = {(read["name"], read["role"]): read for plan in plans for read in plan.reads}
    return Plan(
        kind="compare",
        reads=list(reads.values()),
        peak_memory_bytes=max(plan.peak_memory_bytes for plan in plans),
        warnings=list(dict.fromkeys(warning for plan in plans for warning in plan.warnings)),
    )


def _check_prompt_file(name: str, store: ModelStore) -> None:
    """Refuse what is no file of prompts; a large one is left to the worker."""
    path = store.incoming(name)
    if path.is_dir():
        raise UnreadableFile(f"{name} is a folder", "Name one file of prompts in it.")
    if path.stat().st_size <= PARSED_BYTES:
        read_prompt_file(path, name)


def _texts(request: GenerateRequest) -> list[str]:
    texts = [request.prompt, request.system, request.input, *(request.prompts or [])]
    texts += [message.content for message in request.messages or []]
    return [text for text in texts if text is not None]
