"""Preflight of `extend-tokenizer`: can one SentencePiece model take in the pieces of another?"""

from pathlib import Path

from services.architectures.json_vocabulary import read_json_vocabulary
from services.architectures.original_layout import original_folder
from services.architectures.vocabulary import Vocabulary, new_pieces, read_vocabulary
from services.errors import UnsupportedFormat, WrongModelKind
from services.kinds.extend_tokenizer import ExtendTokenizerRequest
from services.models.summary import kind_of_folder
from services.preflight.plan import PROCESS_BYTES, Inputs, Plan, PlannedRead, PlannedWrite, deferred_plan

TABLE_BYTES_PER_PIECE = 64
"""Bytes of a piece in tokenizer.json, its merges included."""


def tokenizer_file(folder: Path) -> Path:
    """Returns the `tokenizer.model` of a model of any kind, or the only `*.model` of a tokenizer.

    Raises:
        WrongModelKind: the folder has none, or several and none of them is called tokenizer.model.
        UnsupportedFormat: the folder has a `tokenizer.json` alone.
    """
    weights = original_folder(folder)
    named = [place / "tokenizer.model" for place in (folder, weights) if place is not None]
    others = sorted(folder.glob("*.model"))
    found = [path for path in named if path.is_file()] or (others if len(others) == 1 else [])
    if not found and (folder / "tokenizer.json").is_file():
        raise _no_sentencepiece(
            f"The tokenizer.json of {folder.name!r}", read_json_vocabulary(folder / "tokenizer.json")
        )
    if not found:
        there = ", ".join(path.name for path in others) or "no *.model"
        raise WrongModelKind(
            f"{folder.name!r} is of kind {kind_of_folder(folder)!r} and has no tokenizer.model; it has {there}.",
            "Name a model that brings a SentencePiece tokenizer, or import the file alone.",
        )
    return found[0]


def plan(request: ExtendTokenizerRequest, inputs: Inputs) -> Plan:
    """Returns the plan of an extended vocabulary.

    Raises:
        WrongModelKind: an input has no tokenizer.model.
        UnsupportedFormat: it is not a SentencePiece model.
        UnreadableTokenizer: it is damaged.
    """
    if inputs.waiting:
        return deferred_plan(request, inputs)
    files = {
        role: tokenizer_file(inputs.folders[name])
        for role, name in (("base", request.base), ("addition", request.addition))
    }
    vocabularies = {role: _sentencepiece_only(role, path) for role, path in files.items()}
    base, addition = vocabularies["base"].pieces, vocabularies["addition"].pieces
    added = len(new_pieces(base, addition, request.pad_token))
    total = len(base) + added
    sizes = {role: path.stat().st_size for role, path in files.items()}
    return Plan(
        kind=request.kind,
        reads=[
            PlannedRead(name=request.base, role="base", size_bytes=sizes["base"]),
            PlannedRead(name=request.addition, role="addition", size_bytes=sizes["addition"]),
        ],
        writes=PlannedWrite(name=request.target, vocabulary_size=total, added=added),
        output_bytes=sum(sizes.values()) + total * TABLE_BYTES_PER_PIECE,
        peak_memory_bytes=PROCESS_BYTES,
    )


def _sentencepiece_only(role: str, path: Path) -> Vocabulary:
    vocabulary = read_vocabulary(path)
    if vocabulary.kind != "sentencepiece":
        raise _no_sentencepiece(f"The {role}'s {path.name}", vocabulary)
    return vocabulary


def _no_sentencepiece(subject: str, vocabulary: Vocabulary) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"{subject} is a {vocabulary.kind} tokenizer; only SentencePiece models (tokenizer.model) are "
        "extended.",
        "LLaMA 1 and 2 have one; Llama 3, Qwen and most models with a tokenizer.json alone do not.",
    )
