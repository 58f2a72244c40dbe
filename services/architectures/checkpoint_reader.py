"""Entry point for reading a base model's description from its headers, whatever its layout."""

from pathlib import Path

from services.architectures.checkpoint import Checkpoint
from services.architectures.huggingface_layout import read_huggingface
from services.architectures.original_layout import original_folder, read_original


def read_checkpoint(folder: Path, *, instruct: bool = False) -> Checkpoint:
    """Describes a base model of either layout from its headers; no tensor is read.

    Raises:
        IncompleteCheckpoint, UnknownTensor, ShapeMismatch, ConfigMismatch, VocabularyMismatch, UnreadableFile,
        UnsafePickle, UnsupportedFormat: what was found, what was needed, what to do.
    """
    original = original_folder(folder)
    if original is not None:
        return read_original(folder, original, instruct=instruct)
    return read_huggingface(folder)
