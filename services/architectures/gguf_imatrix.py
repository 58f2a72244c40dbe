"""Importance matrices of GGUF outputs: the matrices of a model that need a row, and the sizes of a computation.

Rules of a file: those of llama-quantize (ggml-org/llama.cpp `src/llama-quant.cpp`), except that a matrix of a layer without a row, and
a row without its matrix, are errors here: the file is another model's.
"""

from collections.abc import Mapping

from services.architectures.config import ModelConfig
from services.architectures.gguf_families import GGUF_FAMILIES
from services.architectures.gguf_output import GgufOutput, gguf_encodings
from services.errors import IncompleteCheckpoint, ShapeMismatch, UnknownTensor
from services.files.tensors import BLOCKS

CHUNK = 512
"""Tokens of a chunk, llama-imatrix's default. A chunk is a text of its own."""

MOST_CHUNKS = 32
"""Most chunks of a text that are computed: 16,384 tokens."""


def matrix_widths(output: GgufOutput) -> dict[str, tuple[int, bool]]:
    """Returns the columns of each matrix by GGUF's name, and True for those that need a row: of layers, stored in blocks.

    Embeddings and head are encoded without importance if there is no row of them, as in llama-quantize.
    """
    config, encodings = output.config, gguf_encodings(output)
    found = {}
    for name, (_, shape) in output.tensors.items():
        if len(shape) == 2:
            stored = _stored_name(config, name)
            found[stored] = (shape[1], stored.startswith("blk.") and encodings[name] in BLOCKS)
    return found


def _stored_name(config: ModelConfig, name: str) -> str:
    assert config.family is not None and config.family.gguf is not None
    return GGUF_FAMILIES[config.family.gguf].gguf_name(config.model_class.text_name(name) or name)


def check_imatrix(file: str, widths: Mapping[str, int], output: GgufOutput) -> None:
    """Refuses an importance matrix of another model.

    Args:
        file: Name of the file, for messages.
        widths: Columns of each matrix in the file.

    Raises:
        IncompleteCheckpoint: A matrix of a layer has no row.
        UnknownTensor: A row belongs to no matrix.
        ShapeMismatch: A row has another number of columns than its matrix.
    """
    hint = "It is another model's: make it from this one with llama-imatrix, or give a text_file."
    wanted = matrix_widths(output)
    missing = [name for name, (_, needed) in wanted.items() if needed and name not in widths]
    if missing:
        raise IncompleteCheckpoint(
            f"{file} has no importance of {len(missing)} matrices of the model, {missing[0]!r} the first.",
            hint,
        )
    for name, width in widths.items():
        if name not in wanted:
            raise UnknownTensor(
                f"{file} has the importance of {name!r}, which is not a matrix of the model.", hint
            )
        if wanted[name][0] != width:
            raise ShapeMismatch(
                f"{file} has {width} columns of {name!r}; the model has {wanted[name][0]}.", hint
            )


def chunk_size(config: ModelConfig) -> int:
    """Returns the tokens of a chunk: fewer for a model whose context is shorter."""
    return min(CHUNK, config.max_position_embeddings)


def computation_bytes(config: ModelConfig) -> int:
    """Returns the memory of computing an importance matrix: hidden states of all chunks, and the products of one, in float32."""
    chunk = chunk_size(config)
    states = 3 * MOST_CHUNKS * chunk * config.hidden_size
    products = chunk * (4 * config.intermediate_size + 2 * config.num_attention_heads * chunk)
    return 4 * (states + products)
