"""Preflight: what a request would read and write, and every reason to refuse it, from headers alone.

The API asks before it queues, the worker asks again before it works: between the two the volume may have changed.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.backend import ServedModel, check_forwardable
from services.errors import (
    InvalidRequest,
    ModelExists,
    ModelNotFound,
    UnreadableFile,
    UnsupportedFormat,
    UnsupportedOption,
    VocabularyMismatch,
    WrongAdapterOrder,
    WrongModelKind,
)
from services.formats.adapter import Adapter, read_adapter
from services.formats.checkpoint import Checkpoint, original_folder, read_checkpoint
from services.formats.key_map import Shape
from services.formats.outputs import (
    OUTPUT_DTYPES,
    Output,
    OutputFormat,
    check_output,
    output_bytes,
    output_warnings,
    plan_output,
)
from services.formats.stack import check_scales, check_stack, merged_tensors
from services.formats.vocabulary import Vocabulary, new_pieces, read_vocabulary
from services.jobs.requests import (
    MODEL_NAME_PATTERN,
    AnyRequest,
    CompareRequest,
    ConvertRequest,
    EmbedRequest,
    ExtendTokenizerRequest,
    GenerateRequest,
    HubSource,
    ImportRequest,
    MakingRequest,
    MergeRequest,
    PathSource,
    PerplexityRequest,
    ResidentRequest,
    VerifyRequest,
    inputs_of,
    target_of,
)
from services.jobs.room import NO_CLAIMS, Claims, Room
from services.models.inspect import folder_bytes, kind_of_folder
from services.models.known import check_known_order
from services.models.manifest import read_manifest
from services.models.prompt_file import read_prompt_file
from services.models.store import ModelStore
from services.models.uploads import Member, digest_file, list_archive, list_folder
from services.settings import Settings
from services.templates import OWN_TEMPLATE, check_text, find_template

DISK_MARGIN_BYTES = 64 * 2**20
"""Kept free beside a job's output: headers, manifest, the server's own log."""

HASHED_BYTES = 64 * 2**20
"""Weight files up to this size are digested at submission; larger ones when the job starts."""

PARSED_BYTES = 16 * 2**20
"""Files of prompts up to this size are read at submission; larger ones when the job starts."""

PROCESS_BYTES = 350 * 2**20
"""What a worker process with torch takes before its first tensor."""

SCORED_TEXT_BYTES = 16 * 2**20
"""Longest text that one perplexity job takes; the test text of WikiText-103 has 1.3 MB."""

BLOCKS_BYTES = 128 * 2**20
"""What a conversion takes beside that, whatever the model: some blocks of rows in each of two threads, the tokenizer."""

TABLE_BYTES_A_PIECE = 64
"""What a piece takes in tokenizer.json, its merges included."""


VERIFIED_FORMATS: Mapping[str, OutputFormat] = {
    "huggingface": "huggingface", "original": "meta", "gguf": "gguf",
}  # fmt: skip
"""The kinds of model that conversions and merges make, and the output format that each is of."""


class Plan(BaseModel):
    """What a job would do; sizes in bytes."""

    model_config = ConfigDict(frozen=True)

    kind: str
    reads: list[dict[str, Any]] = []
    writes: dict[str, Any] | None = None
    output_bytes: int = 0
    peak_memory_bytes: int = 0
    disk_needed_bytes: int = 0
    disk_free_bytes: int = 0
    disk_reserved_bytes: int = Field(
        default=0, description="Of the free bytes, what other jobs will still take."
    )
    warnings: list[str] = []

    def room(self, taken: Callable[[str], int]) -> Room:
        """What the job needs of the volume; `taken` gives the bytes that a job has written there."""
        return Room(self.disk_needed_bytes, self.disk_free_bytes, taken)


def preflight(
    request: AnyRequest,
    store: ModelStore,
    promised: Mapping[str, AnyRequest],
    *,
    digest_limit_bytes: int = HASHED_BYTES,
    served: ServedModel | None = None,
    claims: Claims = NO_CLAIMS,
) -> Plan:
    """What the request would do, or the reason why it cannot.

    Args:
        promised: models that are not there yet and that jobs before this one will make.
        digest_limit_bytes: weight files up to this size are digested to know published ones.
        served: the other server's model that answers a generate job, where one does.
        claims: what of the volume is taken or set aside already.

    Raises:
        ModelNotFound, SourceNotFound, ModelExists, WrongModelKind, UnsupportedOption, DiskFull, InvalidText, and whatever the
        headers of the inputs are refused for.
    """
    target = target_of(request)
    if target is not None and store.exists(target):
        raise ModelExists(
            f"a model named {target!r} is there already (letter case does not count)",
            "Choose another target, or delete that model first.",
        )
    if isinstance(request, ResidentRequest):
        _check_asked(request, store)
    if isinstance(request, GenerateRequest):
        if served is not None:
            return _plan_forwarded(request, served)
        _need_name_of_the_shelf(request.model)
    waiting = [name for name in inputs_of(request) if name in promised]
    for name in inputs_of(request):
        if name not in promised:
            store.path(name)
    if isinstance(request, ResidentRequest):
        plan = _plan_asking(request, store, waiting)
    elif waiting:
        plan = _later(request, waiting)
    else:
        plan = _plan_making(request, store, digest_limit_bytes)
    return _with_disk(plan, store.free_bytes() + claims.staged_bytes, claims.reserved_bytes)


def _plan_making(request: MakingRequest | VerifyRequest, store: ModelStore, digest_limit_bytes: int) -> Plan:
    """The plan of what makes a model, or checks one."""
    match request:
        case ImportRequest():
            return _plan_import(request, store)
        case ConvertRequest():
            return _plan_convert(request, store)
        case MergeRequest():
            return _plan_merge(request, store, digest_limit_bytes)
        case ExtendTokenizerRequest():
            return _plan_extend_tokenizer(request, store)
        case VerifyRequest():
            return _plan_verify(request, store)


def _plan_asking(request: ResidentRequest, store: ModelStore, waiting: list[str]) -> Plan:
    """The plan of what a loaded model of the shelf answers."""
    if isinstance(request, CompareRequest):
        return _plan_compare(request, store, waiting)
    return _plan_answering(request, store, waiting)


def _later(request: AnyRequest, waiting: list[str]) -> Plan:
    return Plan(
        kind=request.kind,
        writes={"name": target_of(request)},
        warnings=[f"{name} is not there yet: it is checked when the job starts" for name in waiting],
    )


def _with_disk(plan: Plan, free_bytes: int, reserved_bytes: int) -> Plan:
    needed = plan.output_bytes + DISK_MARGIN_BYTES if plan.output_bytes else 0
    plan = plan.model_copy(
        update={
            "disk_needed_bytes": needed, "disk_free_bytes": free_bytes, "disk_reserved_bytes": reserved_bytes,
        }
    )  # fmt: skip
    plan.room(lambda job: 0).check(reserved_bytes)
    return plan


# ---- import -------------------------------------------------------------------------------------------


def import_source(request: ImportRequest, store: ModelStore, *, limit_bytes: int) -> list[Member]:
    """The files that an import would take.

    Raises:
        UnsupportedOption: a hub source.
        SourceNotFound, InvalidName, UnsafeArchive, UnreadableFile, InvalidRequest.
    """
    source = request.source
    if isinstance(source, HubSource):
        raise UnsupportedOption(
            "imports from a model hub are not offered by this version",
            "Download the files yourself and put them into incoming/ on the model volume.",
        )
    path = store.incoming(source.path if isinstance(source, PathSource) else source.zip)
    if isinstance(source, PathSource):
        if path.suffix == ".zip":
            raise InvalidRequest(
                f"{source.path!r} is an archive and was given as a path", f'Use {{"zip": "{source.path}"}}.'
            )
        members = list_folder(path)
    elif path.is_dir():
        raise InvalidRequest(
            f"{source.zip!r} is a folder and was given as an archive", f'Use {{"path": "{source.zip}"}}.'
        )
    else:
        members = list_archive(path, limit_bytes=limit_bytes)
    if not members:
        raise InvalidRequest(f"{path.name} holds no files", "Put the model's files there first.")
    return members


def _plan_import(request: ImportRequest, store: ModelStore) -> Plan:
    members = import_source(request, store, limit_bytes=Settings.model_fields["unpack_limit_bytes"].default)
    total = sum(member.size_bytes for member in members)
    return Plan(
        kind="import",
        reads=[{"path": str(member.path), "size_bytes": member.size_bytes} for member in members[:1000]],
        writes={"name": request.target, "files": len(members)},
        output_bytes=total,
        peak_memory_bytes=PROCESS_BYTES,
    )


# ---- convert and merge --------------------------------------------------------------------------------


def _base(store: ModelStore, name: str, *, instruct: bool = False) -> Checkpoint:
    folder = store.path(name)
    kind = kind_of_folder(folder)
    if kind not in ("original", "huggingface"):
        raise WrongModelKind(
            f"{name!r} is of kind {kind!r}, needed is a base model (original or huggingface)",
            "Adapters go into the list of adapters of a merge; a base model comes first."
            if kind == "adapter"
            else "",
        )
    return read_checkpoint(folder, instruct=instruct)


def _adapter(store: ModelStore, name: str) -> Adapter:
    folder = store.path(name)
    kind = kind_of_folder(folder)
    if kind != "adapter":
        raise WrongModelKind(
            f"{name!r} is of kind {kind!r}, needed is an adapter", "Name an adapter, or use it as base."
        )
    return read_adapter(folder, name)


def _read(name: str, role: str, size_bytes: int) -> dict[str, Any]:
    return {"name": name, "role": role, "size_bytes": size_bytes}


def _checked_output(
    request: ConvertRequest | MergeRequest,
    base: Checkpoint,
    tensors: Mapping[str, tuple[str, Shape]],
    vocabulary: Vocabulary | None,
) -> Output:
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


def _plan_convert(request: ConvertRequest, store: ModelStore) -> Plan:
    checkpoint = _base(store, request.source, instruct=request.instruct)
    if request.instruct:
        _need_original_llama_3(request.source, checkpoint)
    output = _checked_output(request, checkpoint, checkpoint.stored, checkpoint.vocabulary)
    return Plan(
        kind="convert",
        reads=[_read(request.source, "source", checkpoint.size_bytes)],
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


def _writes(request: ConvertRequest | MergeRequest, output: Output) -> dict[str, Any]:
    ranks = {"ranks": output.ranks} if output.format == "meta" else {}
    return {"name": request.target, "output_format": output.format, "tensors": len(output.tensors), **ranks}


def _tokenizer_warnings(base: Checkpoint, output: Output) -> list[str]:
    if output.vocabulary is not None:
        return []
    if (base.tokenizer_folder / "tokenizer.json").is_file():
        return ["Meta's layout has no tokenizer.json: the output will have no tokenizer"] * (
            output.format == "meta"
        )
    return ["no tokenizer.model beside the weights or one level up: the output will have no tokenizer"]


def _plan_merge(request: MergeRequest, store: ModelStore, digest_limit_bytes: int) -> Plan:
    base = _base(store, request.base)
    adapters = [_adapter(store, choice.name) for choice in request.adapters]
    stack = check_stack(base, adapters)
    check_scales([(a, choice.scale) for a, choice in zip(adapters, request.adapters, strict=True)])
    digests = [(a.name, weights_digest(a, digest_limit_bytes)) for a in adapters]
    _check_lineage(request, store, digests)
    output = _checked_output(request, base, merged_tensors(base, adapters), stack.vocabulary)
    widest = max((pair.shape[0] * pair.shape[1] for a in adapters for pair in a.pairs.values()), default=0)
    return Plan(
        kind="merge",
        reads=[
            _read(request.base, "base", base.size_bytes),
            *(_read(adapter.name, "adapter", adapter.weights.stat().st_size) for adapter in adapters),
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


# ---- verify -------------------------------------------------------------------------------------------


def _plan_verify(request: VerifyRequest, store: ModelStore) -> Plan:
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
            reads=[_read(request.model, "model", folder_bytes(folder))],
            peak_memory_bytes=PROCESS_BYTES,
        )
    if kind not in VERIFIED_FORMATS:
        raise WrongModelKind(
            f"{request.model!r} is of kind {kind!r}, a merge or conversion makes one of {', '.join(VERIFIED_FORMATS)}",
            "Name the model that was made.",
        )
    base = _base(store, request.base)
    adapters = [_adapter(store, choice.name) for choice in request.adapters]
    stack = check_stack(base, adapters)
    check_scales([(a, choice.scale) for a, choice in zip(adapters, request.adapters, strict=True)])
    return Plan(
        kind="verify",
        reads=[
            _read(request.model, "model", folder_bytes(folder)),
            _read(request.base, "base", base.size_bytes),
            *(_read(adapter.name, "adapter", adapter.weights.stat().st_size) for adapter in adapters),
        ],
        peak_memory_bytes=PROCESS_BYTES,
        warnings=list(stack.warnings),
    )


# ---- extend-tokenizer ---------------------------------------------------------------------------------


def tokenizer_file(store: ModelStore, name: str) -> Path:
    """The `tokenizer.model` of a model of any kind, or the only `*.model` of a tokenizer.

    Raises:
        ModelNotFound; WrongModelKind: it has none, or several of which none is called tokenizer.model.
    """
    folder = store.path(name)
    weights = original_folder(folder)
    named = [place / "tokenizer.model" for place in (folder, weights) if place is not None]
    others = sorted(folder.glob("*.model"))
    found = [path for path in named if path.is_file()] or (others if len(others) == 1 else [])
    if not found:
        there = ", ".join(path.name for path in others) or "no *.model"
        raise WrongModelKind(
            f"{name!r} is of kind {kind_of_folder(folder)!r} and has no tokenizer.model; it has {there}",
            "Name a model that brings a SentencePiece tokenizer, or import the file alone.",
        )
    return found[0]


def _plan_extend_tokenizer(request: ExtendTokenizerRequest, store: ModelStore) -> Plan:
    files = {role: tokenizer_file(store, name)
             for role, name in (("base", request.base), ("addition", request.addition))}  # fmt: skip
    vocabularies = {role: _sentencepiece_only(role, path) for role, path in files.items()}
    base, addition = vocabularies["base"].pieces, vocabularies["addition"].pieces
    added = len(new_pieces(base, addition, request.pad_token))
    total = len(base) + added
    sizes = {role: path.stat().st_size for role, path in files.items()}
    return Plan(
        kind="extend-tokenizer",
        reads=[_read(request.base, "base", sizes["base"]), _read(request.addition, "addition", sizes["addition"])],
        writes={"name": request.target, "vocabulary_size": total, "added": added},
        output_bytes=sum(sizes.values()) + total * TABLE_BYTES_A_PIECE,
        peak_memory_bytes=PROCESS_BYTES,
    )  # fmt: skip


def _sentencepiece_only(role: str, path: Path) -> Vocabulary:
    vocabulary = read_vocabulary(path)
    if vocabulary.kind != "sentencepiece":
        raise UnsupportedFormat(
            f"the {role}'s {path.name} is a {vocabulary.kind} tokenizer, only SentencePiece vocabularies are extended",
            "Llama 3 has tiktoken's; LLaMA 1 and 2 have SentencePiece's.",
        )
    return vocabulary


# ---- generate, compare, embed, perplexity -------------------------------------------------------------


def _check_asked(request: ResidentRequest, store: ModelStore) -> None:
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
            _check_asked(request.asking(request.variants[0], seed=None), store)


def _plan_forwarded(request: GenerateRequest, model: ServedModel) -> Plan:
    check_forwardable(request, model)
    return Plan(kind=request.kind, reads=[{"name": model.id, "role": "model", "backend": model.server}])


def _need_name_of_the_shelf(name: str) -> None:
    if not re.fullmatch(MODEL_NAME_PATTERN, name):
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


def _plan_answering(
    request: GenerateRequest | EmbedRequest | PerplexityRequest, store: ModelStore, waiting: list[str]
) -> Plan:
    """The plan of what a loaded model answers."""
    kind = request.kind
    if waiting:
        return _later(request, waiting)
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
    adapters = [_adapter(store, choice.name) for choice in request.adapters]
    stack = check_stack(checkpoint, adapters)
    check_scales([(a, choice.scale) for a, choice in zip(adapters, request.adapters, strict=True)])
    return Plan(
        kind=kind,
        reads=[
            _read(request.model, "model", checkpoint.size_bytes),
            *(_read(adapter.name, "adapter", adapter.weights.stat().st_size) for adapter in adapters),
        ],
        peak_memory_bytes=PROCESS_BYTES + checkpoint.parameters * 4,
        warnings=list(stack.warnings),
    )


def _plan_compare(request: CompareRequest, store: ModelStore, waiting: list[str]) -> Plan:
    """The variants run one after another: the largest one says how much memory is needed."""
    askings = [request.asking(variant, seed=None) for variant in request.variants]
    if waiting:
        return _later(request, waiting)
    plans = [_plan_answering(asking, store, []) for asking in askings]
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
