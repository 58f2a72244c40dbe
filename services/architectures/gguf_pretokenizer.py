"""Name of a byte-level tokenizer's pre-tokenizer in GGUF files (`tokenizer.ggml.pre`), found from `tokenizer.json`.

llama.cpp has the patterns by which text is split into words in its own code, by name (ggml-org/llama.cpp `src/llama-vocab.cpp`,
llm_tokenizer_bpe). Its converter recognizes a tokenizer by a digest of a text's tokens, which only models that are listed have; here
the steps themselves are compared.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from services.architectures.json_vocabulary import read_tokenizer_json
from services.architectures.pre_tokenizers import PRE_TOKENIZERS
from services.errors import UnreadableTokenizer, UnsupportedFormat
from services.files.json_members import members, value_at

QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)

Steps = tuple[tuple[object, ...], ...]

_BYTES, _GPT2 = ("ByteLevel", False), ("ByteLevel", True)


def _split(*patterns: str) -> Steps:
    return (*(("Split", pattern, "Isolated", False) for pattern in patterns), _BYTES)


def _names() -> dict[tuple[Steps, bool], str]:
    names = {
        (_split(QWEN35), False): "qwen35",
        ((("Digits", True), _GPT2), False): "smollm",
        ((_GPT2,), False): "gpt-2",
    }  # the published forms of the last two; files made of GGUF have their patterns
    for (
        name,
        way,
    ) in PRE_TOKENIZERS.items():  # the first of several names of one way is the one that is written
        names.setdefault((_split(*way.patterns), way.whole_words), name)
    return names


NAMES: Mapping[tuple[Steps, bool], str] = _names()
"""Names by the steps of a pre-tokenizer, and by whether words that are pieces are taken before any merge."""


def pretokenizer_name(folder: Path) -> str:
    """Returns the name of a folder's `tokenizer.json`.

    Raises:
        UnsupportedFormat: llama.cpp has no pre-tokenizer of these steps, or the model is not a plain byte-level BPE.
        UnreadableTokenizer: The file is damaged or too large.
    """
    path = folder / "tokenizer.json"
    data = read_tokenizer_json(path)
    try:
        top = members(data)
        model = members(data, top["model"][0])
        parts = {key: value_at(data, top[key]) for key in ("pre_tokenizer", "normalizer") if key in top}
        flags = {key: value_at(data, span) for key, span in model.items() if key not in ("vocab", "merges")}
        steps = tuple(_steps(parts.get("pre_tokenizer")))
        _check_model(flags, parts.get("normalizer"))
        name = NAMES.get((steps, bool(flags.get("ignore_merges"))))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableTokenizer(
            f"{path.name} is not a tokenizer ({error}).", "Take tokenizer.json from the original model."
        ) from error
    if name is None:
        shown = ", ".join(str(step[0]) for step in steps) or "none"
        raise UnsupportedFormat(
            f"tokenizer.json splits text by steps ({shown}) that llama.cpp has no name for (tokenizer.ggml.pre); known are "
            f"those of {', '.join(dict.fromkeys(NAMES.values()))}.",
            "Use llama.cpp's own converter if it knows the model.",
        )
    return name


def normalizes(folder: Path) -> bool:
    """Returns True if a folder's `tokenizer.json`, which has a name here, normalizes text first: to NFC."""
    data = read_tokenizer_json(folder / "tokenizer.json")
    top = members(data)
    normalizer = value_at(data, top["normalizer"]) if "normalizer" in top else None
    return any(True for _ in _flat(normalizer, "normalizers"))


def _check_model(flags: Mapping[str, Any], normalizer: Any) -> None:
    """Refuses what llama.cpp's byte-level BPE does not do. It leaves out NFC too, as for all models with it."""
    found = flags.get("type", "BPE")
    if found != "BPE":
        raise UnsupportedFormat(
            f"tokenizer.json has a model of type {found!r}; GGUF holds byte-level BPE.", ""
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if flags.get(key):
            raise UnsupportedFormat(
                f"tokenizer.json has {key} = {flags[key]!r}, which llama.cpp does not compute."
            )
    kinds = [step.get("type") for step in _flat(normalizer, "normalizers")]
    if any(kind != "NFC" for kind in kinds):
        raise UnsupportedFormat(
            f"tokenizer.json normalizes text by {', '.join(map(str, kinds))}; llama.cpp does not."
        )


def _flat(step: Any, inner: str) -> Iterator[Mapping[str, Any]]:
    if not isinstance(step, dict):
        return
    if step.get("type") != "Sequence":
        yield step
    for part in step.get(inner) or []:
        yield from _flat(part, inner)


def _steps(pre_tokenizer: Any) -> Iterator[tuple[object, ...]]:
    for step in _flat(pre_tokenizer, "pretokenizers"):
        kind = step.get("type")
        if kind == "Split":
            pattern = step.get("pattern") or {}
            yield kind, pattern.get("Regex"), step.get("behavior"), bool(step.get("invert"))
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            yield kind, bool(step.get("use_regex", True))
        elif kind == "Digits":
            yield kind, bool(step.get("individual_digits"))
        else:
            yield (kind or "unknown",)
