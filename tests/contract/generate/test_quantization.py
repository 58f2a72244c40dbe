"""Loading in 8 and 4 bits on the CPU: bitsandbytes' weights against the papers' arithmetic.

bitsandbytes compiles a part of its code with a deprecated torch function; hence the filter.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from services.errors import UnsupportedOption
from services.generate import GenerationRequest, LoadedModel, load_model
from services.generate.quantization import quantization_config
from services.kinds.generate import GenerateRequest
from services.models.store import ModelStore
from services.sampling import Sampling
from tests.contract.generate.engine_driver import run
from tests.reference.huggingface_model import save_llama
from worker.inference.model_key import key_of
from worker.inference.model_memory import model_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen values of NF4 (Dettmers and others, QLoRA, 2023, appendix E)."""

PROMPTS = [[1, 5, 9, 33, 71, 4], [1, 17, 23, 99, 8, 60, 3], [1, 88, 42, 6, 7]]
GREEDY = Sampling(do_sample=False, repetition_penalty=1.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with one model: 3 layers, dim 64, 8 heads, 4 KV heads, width 192, 101 tokens."""
    root = tmp_path_factory.mktemp("volume")
    save_llama(root / "model", hidden_size=64, intermediate_size=192)
    return root


@pytest.fixture(scope="module")
def eight(volume: Path) -> LoadedModel:
    return load_model(volume / "model", quantization="8bit")


@pytest.fixture(scope="module")
def four(volume: Path) -> LoadedModel:
    return load_model(volume / "model", quantization="4bit")


def original(volume: Path, name: str) -> torch.Tensor:
    weights: torch.Tensor = LlamaForCausalLM.from_pretrained(
        volume / "model", dtype=torch.float32
    ).get_parameter(name)
    return weights.detach()


def test_8_bits_are_rows_rounded_to_127ths_of_their_largest_value(volume: Path, eight: LoadedModel) -> None:
    weights = original(volume, "model.layers.1.mlp.up_proj.weight")
    found: Any = eight.model.get_parameter("model.layers.1.mlp.up_proj.weight")
    largest = weights.abs().amax(dim=1)
    assert found.dtype == torch.int8
    torch.testing.assert_close(found.SCB, largest)
    steps = weights * 127 / largest[:, None]
    assert int((found - steps.round()).abs().max()) <= 1  # halves may be rounded either way
    assert float((found - steps).abs().max()) <= 0.501


def test_4_bits_are_the_nearest_of_sixteen_values_in_blocks_of_64(volume: Path, four: LoadedModel) -> None:
    from bitsandbytes.functional import dequantize_4bit

    weights = original(volume, "model.layers.2.self_attn.k_proj.weight")
    found: Any = four.model.get_parameter("model.layers.2.self_attn.k_proj.weight")
    blocks = weights.reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = values[(blocks[..., None] / largest[..., None] - values).abs().argmin(dim=-1)]
    assert found.dtype == torch.uint8
    assert found.numel() == weights.numel() // 2
    expected = (nearest * largest).reshape(weights.shape)
    torch.testing.assert_close(dequantize_4bit(found, found.quant_state).float(), expected)


MATRICES = 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 192 * 64)
KEPT = 4 * (2 * 101 * 64 + 7 * 64)
"""Bytes of embeddings, head and norms in float32."""
ROWS = 3 * (2 * 64 + 2 * 32 + 2 * 192 + 64)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [("8bit", KEPT + MATRICES + 4 * ROWS), ("4bit", KEPT + MATRICES // 2 + 4 * MATRICES // 64)],
)
def test_sizes_count_the_scales_and_unquantized_tensors(
    volume: Path, quantization: Any, expected: int
) -> None:
    assert load_model(volume / "model", quantization=quantization).size_bytes == expected
    body = {"kind": "generate", "model": "model", "prompt": "x", "quantization": quantization}
    store = ModelStore(volume)
    needed = model_bytes(key_of(GenerateRequest.model_validate(body), store), store, "cpu")
    # The scales of 8 bits are left out of the estimate: 4 bytes a row, here of 64 columns and not of 4,096.
    assert needed == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_the_engine_generates_the_tokens_of_transformers_with_these_weights(
    volume: Path, quantization: Any
) -> None:
    loaded = load_model(volume / "model", quantization=quantization)
    requests = [GenerationRequest(ids, GREEDY) for ids in PROMPTS]
    found = run(loaded, requests)
    config = quantization_config(quantization, torch.float32)
    reference: Any = LlamaForCausalLM.from_pretrained(
        volume / "model", dtype=torch.float32, quantization_config=config
    )
    for module in reference.modules():  # in float32 on every CPU
        module.support_avx512bf16_for_cpu = False
    for ids, request in zip(PROMPTS, requests, strict=True):
        prompt = torch.tensor([ids])
        written = reference.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )
        (output,) = found[request.id]
        assert output.token_ids == written[0, len(ids) :].tolist()


def test_rows_that_are_not_whole_blocks_are_refused_in_4_bits(tmp_path: Path) -> None:
    """bitsandbytes decodes them wrongly on a CPU with AVX-512."""
    save_llama(tmp_path / "model")
    with pytest.raises(
        UnsupportedOption, match="rows of 48 values; in 4bit on a CPU they must be whole blocks of 64"
    ):
        load_model(tmp_path / "model", quantization="4bit")
    assert load_model(tmp_path / "model", quantization="8bit").size_bytes


def test_a_worker_without_bitsandbytes_refuses(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedOption, match="4bit needs the package bitsandbytes") as caught:
        load_model(volume / "model", quantization="4bit")
    assert "graftwerk-service[quantization]" in caught.value.hint


def test_a_bitsandbytes_that_does_not_start_is_refused(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libbitsandbytes_cpu.so: no such file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(UnsupportedOption, match=r"does not start here: libbitsandbytes_cpu\.so"):
        load_model(volume / "model", quantization="8bit")
