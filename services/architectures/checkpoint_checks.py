"""Checks that both layouts share: dtypes, completeness, the number of layers, the vocabulary."""

from pathlib import Path

from services.architectures.config import ModelConfig
from services.architectures.vocabulary import Vocabulary, read_vocabulary
from services.errors import IncompleteCheckpoint, UnknownTensor, UnsupportedFormat, VocabularyMismatch
from services.files.tensors import FLOAT_DTYPES
from services.files.weight_files import Tensors


def only_floats(tensors: Tensors) -> Tensors:
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOAT_DTYPES:
            raise UnsupportedFormat(
                f"{tensor.path.name}: tensor {name!r} has dtype {tensor.dtype}, weights come in "
                f"{', '.join(FLOAT_DTYPES)}.",
                "Use unquantized weights.",
            )
    return tensors


def check_layers(layers: int, tensors: Tensors) -> None:
    """Refuses more layers than tensors, before the names of all layers are listed.

    Raises:
        IncompleteCheckpoint: There are fewer tensors than layers.
    """
    if layers > len(tensors):
        raise IncompleteCheckpoint(
            f"A model of {layers} layers was announced; the files hold {len(tensors)} tensors.",
            "Fetch the checkpoint again; all its files are needed.",
        )


def check_complete(wanted: set[str], found: set[str], where: Tensors) -> None:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing:
        raise IncompleteCheckpoint(
            f"{len(missing)} of {len(wanted)} tensors are missing; the first is {missing[0]!r}.",
            "Fetch the checkpoint again; all its files are needed.",
        )
    if extra:
        raise UnknownTensor(
            f"{where[extra[0]].path.name} holds {extra[0]!r}, which a model of this configuration does not have.",
            "The checkpoint and its configuration do not belong together.",
        )


def find_vocabulary(folder: Path) -> Vocabulary | None:
    path = folder / "tokenizer.model"
    return read_vocabulary(path) if path.is_file() else None


def check_vocabulary(config: ModelConfig, vocabulary: Vocabulary | None, *, exact: bool) -> None:
    """Refuses embeddings with fewer rows than the tokenizer has tokens, or with `exact` also more.

    Hugging Face models may have rows of padding; original checkpoints have none. Added tokens of a `tokenizer.json` need no
    row: the text models of Gemma 3 have none for the image token.

    Raises:
        VocabularyMismatch: The sizes do not fit.
    """
    if vocabulary is None:
        return
    if vocabulary.text_size > config.vocab_size or (exact and vocabulary.size != config.vocab_size):
        raise VocabularyMismatch(
            f"{vocabulary.file} knows {vocabulary.text_size} tokens; the embeddings have {config.vocab_size} rows.",
            f"Use the {vocabulary.file} that belongs to these weights.",
        )
