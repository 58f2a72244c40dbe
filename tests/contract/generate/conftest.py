"""A tiny LLaMA with random weights, wide enough that its most likely tokens differ by more than rounding."""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from services.generate import LoadedModel, load_model
from tests.contract.generate.engine_driver import CONTEXT, VOCABULARY
from tests.corpus import mixed_lines

PROMPTS = (
    "Hello world, how are you?",
    "请用中文写一首关于春天的诗。",
    "def merge(base, lora):",
    "The quick brown fox jumps over the lazy dog and runs far away into the deep dark forest of words",
    "😀 emoji and code {}",
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with random weights and a SentencePiece model with byte fallback, like LLaMA's."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in mixed_lines(3000) if line.isascii() and line.strip()]),
        model_writer=written,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    torch.manual_seed(0)
    config: Any = LlamaConfig
    model = LlamaForCausalLM(
        config(
            vocab_size=VOCABULARY,
            hidden_size=48,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.3,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder)


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    """The same model, loaded by transformers alone."""
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="session")
def prompts(loaded: LoadedModel) -> list[list[int]]:
    return [loaded.tokenizer.encode(text) for text in PROMPTS]


@pytest.fixture
def spoiled(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """The same model with NaN in the embedding of token 400: only sequences with that token are affected."""
    other = load_model(folder)
    embeddings: Any = other.model.get_input_embeddings()
    with torch.no_grad():
        embeddings.weight[400] = math.nan
    return other


@pytest.fixture
def tokens_read(loaded: LoadedModel) -> Iterator[list[int]]:
    """Number of new tokens in each row of the model's forward passes; an engine's first finds the size of keys and values."""
    read: list[int] = []
    model: Any = loaded.model
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield read
    handle.remove()
