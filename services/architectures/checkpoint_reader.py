"""Reading of a base model's description from its headers, in every layout."""

from pathlib import Path

from services.architectures.checkpoint import Checkpoint
from services.architectures.gguf_layout import is_gguf_folder, read_gguf
from services.architectures.huggingface_layout import read_huggingface
from services.architectures.original_layout import original_folder, read_original


def read_checkpoint(folder: Path, *, instruct: bool = False, dequantized: bool = False) -> Checkpoint:
    """Returns the description of a base model of any layout from its headers; no tensor is read.

    Args:
        instruct: Llama 3: the model is an instruct model, which has several tokens that end an output.
        dequantized: Weights that bitsandbytes has stored in 4 bits are accepted, as what they are dequantized.

    Raises:
        IncompleteCheckpoint: A file, a tensor or a number in a configuration is missing.
        UnknownTensor: A tensor does not belong to a LLaMA model of this configuration.
        ShapeMismatch: A tensor has another shape than the configuration says.
        ConfigMismatch: Configuration and tensors disagree.
        VocabularyMismatch: Tokenizer and embeddings differ in size.
        UnreadableFile: A file is truncated or damaged.
        UnsafePickle: A pickle names something other than tensors.
        UnreadableTokenizer: The tokenizer of a GGUF file cannot be rebuilt.
        UnsupportedFormat: The model is of another family or format, or its weights are stored quantized.
    """
    original = original_folder(folder)
    if original is not None:
        return read_original(folder, original, instruct=instruct)
    if is_gguf_folder(folder):
        return read_gguf(folder)
    return read_huggingface(folder, dequantized=dequantized)
