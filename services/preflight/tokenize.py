"""Preflight of `tokenize`: the folder of the tokenizer, which an adapter's may replace."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.adapters.gguf_adapter_file import check_gguf_adapter
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.gguf_vocabulary import ARRAYS, read_gguf_vocabulary
from services.errors import InvalidRequest, VocabularyMismatch, WrongModelKind
from services.files.gguf_files import read_gguf_model
from services.kinds.model_summary import ModelKind
from services.kinds.tokenize import TokenizeRequest
from services.models.summary import kind_of_folder
from services.preflight.generate import check_prompts
from services.preflight.gguf_model import check_adapter_kind
from services.preflight.plan import (
    PROCESS_BYTES,
    Inputs,
    Plan,
    PlannedRead,
    deferred_plan,
)
from services.templates import check_text

KINDS_WITH_TOKENIZER: Sequence[ModelKind] = ("huggingface", "original", "tokenizer", "gguf")
FILES = ("tokenizer.model", "tokenizer.json", "vocab.json")


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """Folder of the tokenizer's files, and that of the base, whose configuration and chat template count next to an adapter's."""

    folder: Path
    base: Path


def plan(request: TokenizeRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a tokenize job.

    Raises:
        InvalidText: a text is not valid Unicode.
        UnknownTemplate, UnsupportedSchema: see `check_prompts`.
        GraftwerkError: as `tokenizer_source`.
    """
    for text in request.texts or []:
        check_text(text)
    if request.messages is not None:
        check_prompts(request.conversation, inputs.store)
    if inputs.waiting:
        return deferred_plan(request, inputs)
    source = tokenizer_source(request, inputs)
    files = [source.folder / name for name in FILES if (source.folder / name).is_file()]
    size_bytes = sum(file.stat().st_size for file in files or source.folder.glob("*.gguf"))
    name = source.folder.name if request.adapters else request.model
    return Plan(
        kind=request.kind,
        reads=[PlannedRead(name=name, role="tokenizer", size_bytes=size_bytes)],
        peak_memory_bytes=PROCESS_BYTES,
    )


def tokenizer_source(request: TokenizeRequest, inputs: Inputs) -> TokenizerSource:
    """Returns the folders from which the tokenizer of a model, or of a base with adapters, is read.

    Raises:
        ModelNotFound: a model is not on the volume.
        WrongModelKind: the model is an adapter, or nothing that has a tokenizer.
        VocabularyMismatch: the model has no tokenizer.
        InvalidRequest: adapters on a tokenizer alone.
        GraftwerkError: the adapters do not fit.
    """
    folder = inputs.folders[request.model]
    kind = kind_of_folder(folder)
    if kind not in KINDS_WITH_TOKENIZER:
        raise WrongModelKind(
            f"{request.model!r} is of kind {kind!r}; a model or a tokenizer is needed.",
            "Name the base, and adapters in `adapters`.",
        )
    if kind == "gguf":
        return _of_gguf(request, inputs)
    if request.adapters:
        source = _with_adapters(request, inputs)
    else:
        own = read_checkpoint(folder).tokenizer_folder if kind == "original" else folder
        source = TokenizerSource(own, folder)
    if not any((source.folder / name).is_file() for name in FILES):
        raise VocabularyMismatch(
            f"{request.model!r} has no tokenizer (tokenizer.model or tokenizer.json).",
            "Add the model's tokenizer files.",
        )
    return source


def _of_gguf(request: TokenizeRequest, inputs: Inputs) -> TokenizerSource:
    """Returns the folder of a GGUF model, whose adapters change no token."""
    folder = inputs.folders[request.model]
    read_gguf_vocabulary(read_gguf_model(folder, ARRAYS))
    for choice in request.adapters:
        check_adapter_kind(choice.name, request.model, kind_of_folder(inputs.folders[choice.name]))
        check_gguf_adapter(inputs.folders[choice.name], folder)
    return TokenizerSource(folder, folder)


def _with_adapters(request: TokenizeRequest, inputs: Inputs) -> TokenizerSource:
    folder = inputs.folders[request.model]
    if kind_of_folder(folder) == "tokenizer":
        raise InvalidRequest(
            f"{request.model!r} is a tokenizer alone, which takes no adapters.",
            "Name the base model instead.",
        )
    _, stack = inputs.stack(inputs.base(request.model), request.adapters)
    return TokenizerSource(stack.tokenizer_folder, folder)
