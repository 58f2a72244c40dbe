"""Output of conversions and merges: its format, size and warnings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from services.architectures.checkpoint import Checkpoint
from services.architectures.gguf_pretokenizer import normalizes, pretokenizer_name
from services.architectures.key_map import Shape
from services.architectures.output_spec import (
    OUTPUT_DTYPES,
    OutputFormat,
    OutputSpec,
    check_output,
    plan_output,
)
from services.architectures.vocabulary import Vocabulary
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.preflight.plan import PlannedWrite

FORMAT_OF_KIND: Mapping[str, OutputFormat] = {
    "huggingface": "huggingface", "original": "meta", "gguf": "gguf",
}  # fmt: skip
"""Output format by the kind of model that conversions and merges make."""


def checked_output(
    request: ConvertRequest | MergeRequest,
    base: Checkpoint,
    tensors: Mapping[str, tuple[str, Shape]],
    vocabulary: Vocabulary | None,
    tokenizer_folder: Path,
) -> OutputSpec:
    """Returns the output that the request describes.

    Args:
        tensors: dtype and shape by Hugging Face's names.
        tokenizer_folder: folder of the tokenizer that is written.

    Raises:
        UnsupportedOption, UnsupportedFormat, VocabularyMismatch: the format cannot hold it.
    """
    rows = tensors[base.embeddings][1][0]
    output = plan_output(
        request.output_format, replace(base.config, vocab_size=rows), tensors, vocabulary=vocabulary,
        dtype=OUTPUT_DTYPES[request.dtype] if request.dtype else None, ranks=request.ranks or base.ranks,
        has_imatrix=request.imatrix is not None,
    )  # fmt: skip
    check_output(output)
    if output.format == "gguf" and vocabulary is not None and vocabulary.file == "tokenizer.json":
        pretokenizer_name(tokenizer_folder)
    return output


def left_out_warnings(tensors: Mapping[str, tuple[str, Shape]], output: OutputSpec) -> list[str]:
    """Returns a warning if the format leaves out parts of the model."""
    left = [name for name in tensors if name not in output.tensors]
    return (
        [f"{len(left)} tensors do not belong to the text model and are left out, {left[0]} the first"]
        if left
        else []
    )


def planned_write(request: ConvertRequest | MergeRequest, output: OutputSpec) -> PlannedWrite:
    """Returns the plan's entry of the output."""
    return PlannedWrite(
        name=request.target, output_format=output.format, tensors=len(output.tensors),
        ranks=output.ranks if output.format == "meta" else None,
    )  # fmt: skip


def tokenizer_warnings(tokenizer_folder: Path, output: OutputSpec) -> list[str]:
    """Returns a warning if the output will have no tokenizer, or one that llama.cpp does not compute alike."""
    if output.format == "gguf":
        return _gguf_tokenizer_warnings(tokenizer_folder, output)
    if output.vocabulary is not None:
        lost = output.format == "meta" and output.vocabulary.file == "tokenizer.json"
        return ["Meta's layout has no tokenizer.json: the output will have no tokenizer"] * lost
    return ["no tokenizer.model next to the weights or one level up: the output will have no tokenizer"]


def _gguf_tokenizer_warnings(tokenizer_folder: Path, output: OutputSpec) -> list[str]:
    byte_level = output.vocabulary is not None and output.vocabulary.file == "tokenizer.json"
    if not byte_level or not normalizes(tokenizer_folder):
        return []
    return [
        "The tokenizer normalizes text to Unicode's form NFC; llama.cpp does not, so that text in another form gives other tokens there."
    ]
