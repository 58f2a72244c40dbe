"""Choice of the files of a repository that an import needs: one format of weights, and what belongs to them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

from services.bounded_text import listed
from services.errors import (
    GraftwerkError,
    IncompleteCheckpoint,
    InvalidName,
    InvalidRequest,
    UnsupportedFormat,
)

NEVER = ("manifest.json", ".git*")
"""Patterns of files that no import takes: an import writes its own manifest, and git's files say nothing about a model."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

CONFIGURATION = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip

DOCUMENTS = ("README.md", "LICEN[SC]E*", "NOTICE*", "COPYING*", "USE_POLICY*")
DOCUMENT_LIMIT_BYTES = 2**20

WEIGHTS = (
    (r"model\.safetensors", None),
    (r"model-\d+-of-(\d+)\.safetensors", "model.safetensors.index.json"),
    (r"pytorch_model\.bin", None),
    (r"pytorch_model-\d+-of-(\d+)\.bin", "pytorch_model.bin.index.json"),
)
"""Names of weight files and of their index, in transformers' order; the first that a repository has are taken."""

ORIGINAL = re.compile(r"(?P<folder>.*/)?consolidated\.\d+\.pth")
GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository at one commit.

    `etag` is the SHA-256 of a file in large file storage, else the SHA-1 of git's blob.
    """

    path: str
    size_bytes: int
    etag: str
    is_lfs: bool


def chosen_files(
    repository: str, files: Iterable[HubFile], patterns: Sequence[str] | None
) -> tuple[HubFile, ...]:
    """Returns the files to fetch, by path.

    Args:
        patterns: shell patterns that name them; None takes what the repository's one model needs.

    Raises:
        InvalidRequest: a pattern matches nothing, or several GGUF files could be meant.
        UnsupportedFormat: the files are not those of a model that can be read.
        IncompleteCheckpoint: weights are missing.
        InvalidName: two paths are equal ignoring case.
    """
    offered = sorted((file for file in files if not _matches(file.path, NEVER)), key=lambda file: file.path)
    names = [file.path for file in offered]
    taken = _needed(repository, offered) if patterns is None else _named(repository, names, patterns)
    _check_ggufs(repository, [name for name in names if name in taken and name.endswith(".gguf")])
    _check_is_model(repository, taken, names)
    _check_distinct(repository, taken)
    return tuple(file for file in offered if file.path in taken)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)


def _named(repository: str, names: list[str], patterns: Sequence[str]) -> set[str]:
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in names):
            raise InvalidRequest(
                f"No file of {repository} matches {pattern!r}; it holds {listed(names, none='no files')}.",
                "Correct the pattern, or leave `files` out to take what the model needs.",
            )
    return {name for name in names if _matches(name, patterns)}


def _needed(repository: str, files: list[HubFile]) -> set[str]:
    names = [file.path for file in files]
    documents = {
        file.path
        for file in files
        if "/" not in file.path and _matches(file.path, DOCUMENTS) and file.size_bytes <= DOCUMENT_LIMIT_BYTES
    }
    tokenizer = {name for name in names if _matches(name, TOKENIZER)}
    ggufs = {name for name in names if name.endswith(".gguf") and not name.startswith("mmproj")}
    if ADAPTER_CONFIG in names:
        return {ADAPTER_CONFIG, _adapter_weights(repository, names)} | tokenizer | documents
    weights = _weights(repository, names)
    if weights and "config.json" in names:
        return weights | (set(CONFIGURATION) & set(names)) | tokenizer | documents
    if ggufs:
        return ggufs | documents
    if original := _original(names):
        return original | documents
    return tokenizer | documents


def _adapter_weights(repository: str, names: list[str]) -> str:
    for name in ADAPTER_WEIGHTS:
        if name in names:
            return name
    raise IncompleteCheckpoint(
        f"{repository} has an {ADAPTER_CONFIG} and no {' or '.join(ADAPTER_WEIGHTS)}; it holds {listed(names, none='no files')}.",
        "Choose a revision that has the weights.",
    )


def _weights(repository: str, names: list[str]) -> set[str]:
    for pattern, index in WEIGHTS:
        found = [match for name in names if (match := re.fullmatch(pattern, name))]
        if not found:
            continue
        if index is None:
            return {found[0].string}
        total = int(found[0].group(1))
        if len(found) != total or index not in names:
            raise IncompleteCheckpoint(
                f"{repository} lists {len(found)} of {total} shards and {'its' if index in names else 'no'} {index}.",
                "Choose a revision whose upload is complete.",
            )
        return {match.string for match in found} | {index}
    return set()


def _original(names: list[str]) -> set[str]:
    """Returns the files of a checkpoint in Meta's layout: at the top, or in the only folder that has some."""
    folders = {match.group("folder") or "" for name in names if (match := ORIGINAL.fullmatch(name))}
    if len(folders) != 1:
        return set()
    (folder,) = folders
    wanted = (
        folder + "consolidated.*.pth",
        folder + "params.json",
        folder + "tokenizer.model",
        "tokenizer.model",
    )
    return {name for name in names if _matches(name, wanted)}


def _check_ggufs(repository: str, ggufs: list[str]) -> None:
    parts = [name for name in ggufs if GGUF_PART.search(name)]
    if parts:
        raise UnsupportedFormat(
            f"{repository}: {parts[0]} is one part of a GGUF file, and parts cannot be read.",
            "Choose a GGUF file that is whole, or join the parts with llama.cpp's llama-gguf-split --merge.",
        )
    if len(ggufs) > 1:
        raise InvalidRequest(
            f"{repository} has {len(ggufs)} GGUF files to choose from: {listed(ggufs)}.",
            f'Name one of them: "files": ["{ggufs[0]}"].',
        )


def _check_is_model(repository: str, taken: set[str], names: list[str]) -> None:
    is_model = any(
        name in ("config.json", ADAPTER_CONFIG, *ADAPTER_WEIGHTS)
        or ORIGINAL.fullmatch(name)
        or ("/" not in name and name.endswith((".gguf", ".model")))
        for name in taken
    )
    if not is_model:
        raise _no_model(repository, sorted(taken), names)


def _no_model(repository: str, taken: list[str], names: list[str]) -> GraftwerkError:
    return UnsupportedFormat(
        f"{repository}: {listed(taken, none='no files')} would be taken, which is not a model; it holds {listed(names, none='no files')}.",
        "Needed are config.json with model.safetensors or pytorch_model.bin, adapter_config.json with its weights, "
        "consolidated.NN.pth with params.json, a GGUF file or a tokenizer.model: name the files with `files`.",
    )


def _check_distinct(repository: str, taken: set[str]) -> None:
    lower = sorted(name.lower() for name in taken)
    twice = next((one for one, other in pairwise(lower) if one == other), None)
    if twice is not None:
        raise InvalidName(
            f"{repository} has two files {twice!r} whose names differ in case alone.",
            "Name one of them with `files`.",
        )
