"""GGUF files: which models they can hold, the encoding of each tensor, and what a user should know beforehand."""

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Protocol

from services.architectures.config import ModelConfig
from services.architectures.gguf_mixes import MIXES, fitting_encoding, mixed_encodings, needs_imatrix
from services.architectures.gguf_support import check_family, family_warnings
from services.architectures.key_map import Shape
from services.architectures.vocabulary import Vocabulary
from services.errors import UnsupportedFormat, UnsupportedOption
from services.files.tensors import BLOCKS, size_of


class GgufOutput(Protocol):
    """The parts of an `OutputSpec` on which a GGUF file depends."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def tensors(self) -> Mapping[str, tuple[str, Shape]]: ...
    @property
    def vocabulary(self) -> Vocabulary | None: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def has_imatrix(self) -> bool: ...


def gguf_encodings(output: GgufOutput) -> dict[str, str]:
    """Returns the encoding of each stored tensor: float32 for vectors, else by the mix or the tensor's own dtype.

    Rows that are not a whole number of blocks fall back to a smaller block as in llama-quantize, or to float16; with a mix
    in blocks of 32 they keep their dtype; llama.cpp's converter makes them float16.
    """
    mixed = _mixed(output)
    found = {}
    for name, (computed, shape) in output.tensors.items():
        if len(shape) == 1:
            found[name] = "F32"
        elif name in mixed:
            found[name] = fitting_encoding(mixed[name], shape) or _blockless(output, computed)
        else:
            found[name] = computed
    return found


def _mixed(output: GgufOutput) -> dict[str, str]:
    if output.dtype is None or output.dtype not in MIXES:
        return {}
    matrices = {name: shape for name, (_, shape) in output.tensors.items() if len(shape) == 2}
    return mixed_encodings(output.config, matrices, output.dtype, has_imatrix=output.has_imatrix)


def _blockless(output: GgufOutput, computed: str) -> str:
    main, _ = BLOCKS[MIXES[output.dtype or ""].encoding]
    return computed if main == 32 else "F16"


def gguf_bytes(output: GgufOutput) -> int:
    """Returns the bytes of all tensors as they are stored."""
    return sum(size_of(code, prod(output.tensors[name][1])) for name, code in gguf_encodings(output).items())


# ---- checks -------------------------------------------------------------------------------------------


def check_gguf(output: GgufOutput) -> None:
    """Refuses a model that a GGUF file cannot hold.

    Raises:
        UnsupportedFormat: llama.cpp would compute something else, or the tokenizer cannot be written.
        UnsupportedOption: The dtype fits no tensor, or needs an importance matrix.
    """
    check_family(output.config, output.tensors)
    found = output.vocabulary
    if found is None or not (found.file == "tokenizer.model" or found.kind == "byte-level"):
        raise UnsupportedFormat(
            "A GGUF file carries its tokenizer, which is written from tokenizer.model or a byte-level tokenizer.json; "
            f"the model has {'none' if found is None else 'another kind'}.",
            "Add the original tokenizer.model.",
        )
    encodings = gguf_encodings(output)
    for name, encoding in encodings.items():
        if encoding == "F64":
            raise UnsupportedOption(
                f"{name!r} is of float64, which llama.cpp does not compute with.",
                'Ask for dtype "float32", "float16" or "bfloat16".',
            )
    if output.dtype is not None and output.dtype in MIXES:
        _check_blocks(output, output.dtype, encodings)
        _check_imatrix(output, output.dtype, encodings)


def _check_blocks(output: GgufOutput, mix: str, encodings: Mapping[str, str]) -> None:
    """Refuses a mix if no tensor can take blocks."""
    if any(encoding in BLOCKS for encoding in encodings.values()):
        return
    block, row = 32, output.config.hidden_size
    raise UnsupportedOption(
        f"The model has rows of {row} elements; {mix} encodes blocks of {block} ({row % block} are left), so no tensor "
        "could be encoded.",
        'Ask for dtype "float16", "bfloat16" or "float32".',
    )


def _check_imatrix(output: GgufOutput, mix: str, encodings: Mapping[str, str]) -> None:
    if output.has_imatrix:
        return
    model_class = output.config.model_class
    for name, encoding in encodings.items():
        ends = (model_class.embeddings, model_class.head)
        if model_class.text_name(name) not in ends and needs_imatrix(mix, encoding):
            raise UnsupportedOption(
                f"{mix} stores {name!r} as {encoding}, which needs an importance matrix; the request has none.",
                'Give one with "imatrix", or choose a dtype that needs none, for example "q4_k_m" or "q2_k".',
            )


def gguf_warnings(output: GgufOutput) -> list[str]:
    """Returns what a user should know: a window that is not computed, and matrices whose rows do not fit the mix's blocks."""
    encodings, counts = gguf_encodings(output), Counter[str]()
    mixed = _mixed(output)
    for name, wanted in mixed.items():
        if encodings[name] != wanted:
            block, _ = BLOCKS[wanted]
            counts[f"from {wanted} (blocks of {block}) to {encodings[name]}"] += 1
    found = family_warnings(output.config)
    if not counts:
        return found
    listed = ", ".join(f"{count} {change}" for change, count in counts.items())
    return [
        *found,
        f"{sum(counts.values())} of {len(mixed)} matrices have rows that are not a whole number of blocks and fall back: {listed}.",
    ]
