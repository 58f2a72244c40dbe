"""A model whose weights another process holds: what prompts and texts need of it here."""

from dataclasses import dataclass
from pathlib import Path

from services.architectures.tokenizer_files import TokenizerFiles
from services.generate.chat_template import ChatTemplate
from services.generate.loading import check_kind, context_length_of, read_config
from services.tokenizers import Tokenizer, load_tokenizer


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
