"""Tokenizers that are kept loaded, without the weights of their models.

A thread of its own loads them: the scheduler's has the streams of other jobs.
"""

import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from services.architectures.gguf_layout import is_gguf_folder
from services.architectures.gguf_vocabulary import ARRAYS, read_gguf_vocabulary
from services.architectures.tokenizer_files import TokenizerFiles
from services.checkpoints.huggingface_writer import copy_chat_template, copy_tokenizer
from services.files.gguf_files import read_gguf_model
from services.generate import ChatTemplate, ServedModel
from services.kinds.tokenize import TokenizerFacts
from services.preflight.tokenize import TokenizerSource
from services.tokenizers import Tokenizer, load_tokenizer
from services.tokenizers.gguf_tokenizer import load_gguf_tokenizer
from worker.inference.model_key import Stamp, folder_stamp

KEPT = 4
"""Tokenizers that stay loaded; one with a vocabulary of 128,000 tokens takes 100 MB."""

CONFIGURATION = ("config.json", "generation_config.json", "params.json")
"""Files of a base that say more of its tokenizer."""


LOADER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer-loader")


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer, the facts about it that results carry, and the model as prompts are built for it, of any length."""

    tokenizer: Tokenizer
    facts: TokenizerFacts
    model: ServedModel


def loading_tokenizer(source: Callable[[], TokenizerSource]) -> "Future[LoadedTokenizer]":
    """Returns the tokenizer of a model while it is loaded; it raises what `source` and `tokenizer_of` raise."""
    return LOADER.submit(lambda: tokenizer_of(source()))


def tokenizer_of(source: TokenizerSource) -> LoadedTokenizer:
    """Returns the tokenizer of a model, loaded unless the same files were a moment ago.

    Raises:
        UnreadableTokenizer: one of its files is damaged.
    """
    return _load(source, (folder_stamp(source.folder), folder_stamp(source.base)))


@lru_cache(KEPT)
def _load(source: TokenizerSource, _stamps: Sequence[Stamp]) -> LoadedTokenizer:
    if source.folder == source.base:
        return _loaded(source.folder)
    with TemporaryDirectory(prefix="graftwerk-tokenizer-") as scratch:
        folder = Path(scratch)
        _assemble(source, folder)
        return _loaded(folder)


def _assemble(source: TokenizerSource, target: Path) -> None:
    """Puts the files together as in the folder of a merged model."""
    for name in CONFIGURATION:
        if (source.base / name).is_file():
            shutil.copyfile(source.base / name, target / name)
    copy_tokenizer(source.folder, target)
    copy_chat_template(source.base, target)


def _loaded(folder: Path) -> LoadedTokenizer:
    if is_gguf_folder(folder):
        vocabulary = read_gguf_vocabulary(read_gguf_model(folder, ARRAYS))
        return _with_facts(load_gguf_tokenizer(vocabulary), vocabulary.chat_template, folder)
    return _with_facts(load_tokenizer(folder), TokenizerFiles(folder).chat_template(), folder)


def _with_facts(tokenizer: Tokenizer, chat_template: str | None, folder: Path) -> LoadedTokenizer:
    bos, eos, pad = (
        None if token_id is None else tokenizer.piece(token_id)
        for token_id in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    )
    facts = TokenizerFacts(
        bos_token=bos, eos_token=eos, pad_token=pad, vocabulary_size=tokenizer.vocabulary_size,
        chat_template=chat_template,
    )  # fmt: skip
    model = ServedModel(
        tokenizer=tokenizer, folder=folder, context_length=sys.maxsize, rows=tokenizer.vocabulary_size, size_bytes=0,
        device_name="cpu", dtype_name="", chat_template=None if chat_template is None else ChatTemplate(chat_template),
    )  # fmt: skip
    return LoadedTokenizer(tokenizer, facts, model)
