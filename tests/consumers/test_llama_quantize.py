"""Our GGUF mixes against llama-quantize's of the same model: encodings and bytes of all tensors, and the loss of the logits."""

import functools
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, ReaderTensor
from transformers import AutoModelForCausalLM, GgufConfig

from services.convert import ConvertOptions, convert
from tests.consumers.environments import llama_quantize
from tests.reference.families import VOCABULARY, save_tiny

K_MIXES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")

MIXES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", *K_MIXES, "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS")
"""All mixes that need no importance matrix."""

LAYERS = {"num_hidden_layers": 9}
"""Layers that lie in the first eighth, in the last, and at each of the three positions between."""

NARROW = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64, **LAYERS}
"""Sizes that are whole numbers of blocks of 256."""

MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {
        **NARROW, "num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8,
    }),
    "llama-tied-pairs": ("llama", {**NARROW, "num_key_value_heads": 2, "tied": True}),
    "llama-blocks-of-32": ("llama", {**LAYERS, "hidden_size": 96, "intermediate_size": 160}),
    "qwen2": ("qwen2", {**NARROW, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", {**NARROW, "num_key_value_heads": 1, "head_dim": 128}),
    "phi3": ("phi3", {
        **{key: size for key, size in NARROW.items() if key != "head_dim"}, "num_key_value_heads": 4, "rope_scaling": None,
    }),
    "gemma2": ("gemma2", {**NARROW, "layer_types": ["sliding_attention", "full_attention"] * 4 + ["sliding_attention"], "query_pre_attn_scalar": 64}),
}  # fmt: skip
"""Models by name: groups of one, two and four query heads, tied and untied heads, fused and separate matrices, rows that fall back.

transformers assumes heads of 128 for Qwen3 and does not read their size from the file.
"""

SCALE = 0.3
"""Factor of the random matrices, with which rounding changes the probabilities a little instead of turning them over."""

# transformers copies from arrays that gguf maps read-only; nothing writes to them.
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of float16 values."""
    family, options = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "model"
    model = save_tiny(family, folder, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(SCALE)
    model.save_pretrained(folder)
    return folder


def write_gguf(source: Path, mix: str) -> Path:
    """Converts a model and returns the file."""
    folder = source.parent / mix
    if not folder.exists():
        folder.mkdir()
        convert(source, folder, ConvertOptions(output_format="gguf", dtype=mix))
    return folder / "model.gguf"


def quantize(source: Path, mix: str) -> Path:
    """Has llama-quantize make a mix of our file in float32 and returns its file."""
    file = source.parent / f"llama-quantize-{mix}.gguf"
    if not file.exists():
        command = [llama_quantize(), write_gguf(source, "F32"), file, mix, "2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return file


def tensors_of(file: Path) -> dict[str, ReaderTensor]:
    return {tensor.name: tensor for tensor in GGUFReader(file).tensors}


@pytest.mark.parametrize("mix", MIXES)
def test_encodings_and_bytes_are_llama_quantizes(source: Path, mix: str) -> None:
    ours, theirs = tensors_of(write_gguf(source, mix)), tensors_of(quantize(source, mix))
    types = {name: tensor.tensor_type.name for name, tensor in ours.items()}
    assert types == {name: tensor.tensor_type.name for name, tensor in theirs.items()}
    assert len(types) > 30
    assert [name for name in ours if not np.array_equal(ours[name].data, theirs[name].data)] == []


@pytest.mark.parametrize("mix", K_MIXES)
def test_the_loss_is_llama_quantizes(source: Path, mix: str) -> None:
    """Mean KL divergence from the source in nats, both files computed in float32 by transformers."""
    expected = log_probabilities(write_gguf(source, "F32"))
    ours, theirs = (
        float((expected.exp() * (expected - log_probabilities(file))).sum(-1).mean())
        for file in (write_gguf(source, mix), quantize(source, mix))
    )
    assert 0 < theirs < 1
    assert ours == pytest.approx(theirs, rel=0.02)


@functools.cache
def log_probabilities(file: Path) -> torch.Tensor:
    """Returns a file's log probabilities of the tokens after each of four times 64 random ones, in float64."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()
    ids = torch.randint(VOCABULARY - 50, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits.double().log_softmax(-1)
    return found
