"""A model whose weights another process holds: what prompts and texts need of it here."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from services.architectures.checkpoint import Checkpoint
from services.architectures.gguf_vocabulary import ARRAYS, read_gguf_vocabulary
from services.architectures.tokenizer_files import TokenizerFiles
from services.files.gguf_files import read_gguf_model
from services.files.tensors import DTYPE_NAMES
from services.generate.chat_template import ChatTemplate
from services.generate.loading import check_kind, context_length_of, read_config
from services.tokenizers import Tokenizer, load_tokenizer
from services.tokenizers.gguf_tokenizer import load_gguf_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Tokenizer, sizes and template of a model in another process; the fields mean the same as those of `LoadedModel`."""

    tokenizer: Tokenizer
    folder: Path
    context_length: int
    rows: int
    size_bytes: int
    device_name: str
    dtype_name: str
    chat_template: ChatTemplate | None = None


def read_served_model(
    folder: Path, *, context: int, size_bytes: int, device_name: str, dtype_name: str
) -> ServedModel:
    """Returns the model of a Hugging Face folder without its weights.

    Args:
        context: Largest context that the other process takes, in tokens; 0 is the model's own.

    Raises:
        WrongModelKind, UnsupportedFormat, UnreadableTokenizer: as `load_model`.
    """
    check_kind(folder)
    config = read_config(folder).get_text_config()
    own = context_length_of(config)
    template = TokenizerFiles(folder).chat_template()
    return ServedModel(
        tokenizer=load_tokenizer(folder),
        folder=folder,
        context_length=min(own, context or own),
        rows=int(config.vocab_size),
        size_bytes=size_bytes,
        device_name=device_name,
        dtype_name=dtype_name,
        chat_template=None if template is None else ChatTemplate(template),
    )


def read_served_gguf(
    checkpoint: Checkpoint, *, context: int, size_bytes: int, device_name: str
) -> ServedModel:
    """Returns the model of a GGUF folder without its weights.

    Raises:
        UnreadableTokenizer: its tokenizer cannot be rebuilt.
    """
    vocabulary = read_gguf_vocabulary(read_gguf_model(checkpoint.folder, ARRAYS))
    template = vocabulary.chat_template
    return ServedModel(
        tokenizer=load_gguf_tokenizer(vocabulary),
        folder=checkpoint.folder,
        context_length=context,
        rows=checkpoint.config.vocab_size,
        size_bytes=size_bytes,
        device_name=device_name,
        dtype_name=gguf_dtype(checkpoint),
        chat_template=None if template is None else ChatTemplate(template),
    )


def gguf_dtype(checkpoint: Checkpoint) -> str:
    """Returns the encoding of most of a GGUF model's weights, for example "q4_k"."""
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        sizes[tensor.encoding or tensor.dtype] += tensor.size_bytes
    name = sizes.most_common(1)[0][0]
    return DTYPE_NAMES.get(name, name.lower())
