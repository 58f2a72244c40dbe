"""Layers of LLaMA-like models in fewer operations, against the layers of transformers."""

import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from services.generate.masks import masks_of
from services.generate.prompt_cache import PromptCache
from services.generate.row_groups import attention_name
from services.generate.row_layers import LAYERS, RowLayer, use_row_layers
from services.generate.row_linear import MOST_ROWS, use_row_linear

CONFIGS = (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)
SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip


def model_of(config: type[PreTrainedConfig]) -> Any:
    """Returns a random model of transformers, whose norms and biases are random as well."""
    torch.manual_seed(0)
    made = config(**SHAPE)
    attention = attention_name(made.model_type)
    model: Any = AutoModelForCausalLM.from_config(made, attn_implementation=attention, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model.eval()


def logits(model: Any, ids: torch.Tensor, *, split: int) -> torch.Tensor:
    """Returns the logits of two forward passes with a cache; the second has the tokens from `split` on."""
    cache, found = PromptCache(ids.shape[1]), []
    for part in (ids[:, :split], ids[:, split:]):
        positions = torch.arange(cache.length, cache.length + part.shape[1])[None]
        masks = masks_of(model.config, positions, cache.width(part.shape[1]), model.dtype)
        outcome = model(
            input_ids=part,
            attention_mask=masks,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        found.append(outcome.logits)
        cache.length += part.shape[1]
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("tokens", "split"), [(MOST_ROWS + 12, MOST_ROWS + 11), (4, 3)])
@torch.inference_mode()
def test_a_model_with_these_layers_has_the_bits_of_transformers(
    config: type[PreTrainedConfig], tokens: int, split: int
) -> None:
    ids = torch.randint(0, SHAPE["vocab_size"], (1, tokens))
    expected = logits(model_of(config), ids, split=split)
    changed = model_of(config)
    use_row_linear(changed)  # these numbers of rows are computed as by the plain class
    use_row_layers(changed)
    assert [type(layer) for layer in changed.model.layers] == [RowLayer] * SHAPE["num_hidden_layers"]
    assert torch.equal(logits(changed, ids, split=split), expected)


@pytest.mark.parametrize("config", CONFIGS)
@torch.inference_mode()
def test_few_rows_have_the_logits_of_float64(config: type[PreTrainedConfig]) -> None:
    ids = torch.randint(0, SHAPE["vocab_size"], (1, 30))
    expected = logits(model_of(config).double(), ids, split=20)
    changed = model_of(config)
    use_row_linear(changed)
    use_row_layers(changed)
    assert torch.allclose(logits(changed, ids, split=20).double(), expected, atol=1e-6)


@pytest.mark.parametrize("config", [LlamaConfig, GemmaConfig])
def test_other_layers_and_other_weights_are_computed_by_transformers(config: type[PreTrainedConfig]) -> None:
    model = model_of(config)  # without RowLinear, as with weights in bfloat16, on a GPU, or quantized
    use_row_layers(model)
    assert not any(isinstance(module, RowLayer) for module in model.modules())
    assert (type(model.model.layers[0]).__name__ in LAYERS) == (config is LlamaConfig)


def test_a_model_is_freed_without_the_collector_of_cycles() -> None:
    model = model_of(LlamaConfig)
    use_row_linear(model)
    use_row_layers(model)
    layer = weakref.ref(model.model.layers[0])
    gc.disable()
    try:
        del model
        assert layer() is None
    finally:
        gc.enable()
