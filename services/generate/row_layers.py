"""Layers of LLaMA-like models in float32 on a CPU: transformers' arithmetic in half as many operations.

A step of sixteen rows of a small model is two thousand operations on a few thousand numbers each: to begin them takes as long as a
third of the products. Here queries and keys are rotated together, a norm is one operation, and products are not copied.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm
from transformers import Cache

from services.generate.row_groups import GROUPED, attend
from services.generate.row_linear import RowLinear

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Layers of transformers that differ from one another in biases and in the norms of heads alone."""

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of each position, (rows, tokens, head_dim)."""


class RowLayer(nn.Module):
    """A layer of one of these classes, whose modules it has."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: Rotation | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Returns the hidden states (rows, tokens, hidden) after the layer. The parameters are those of transformers' layers."""
        assert position_embeddings is not None
        own: Any = self
        normed = _normed(own.input_layernorm, hidden_states)
        attended = _attended(own.self_attn, normed, attention_mask, past_key_values, position_embeddings)
        hidden_states = hidden_states + attended
        mlp, normed = own.mlp, _normed(own.post_attention_layernorm, hidden_states)
        changed: torch.Tensor = mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)).mul_(mlp.up_proj(normed)))
        return hidden_states + changed


def use_row_layers(model: nn.Module) -> None:
    """Computes the layers of a model this way, if they are among these and its linear layers are `RowLinear`."""
    whole: Any = model
    if whole.config._attn_implementation != GROUPED:
        return
    for layer in model.modules():
        if type(layer).__name__ not in LAYERS:
            continue
        linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        changed = [module for module in linear if isinstance(module, RowLinear)]
        if len(changed) == len(linear):
            anything: Any = layer
            anything.__class__ = RowLayer
            for module in changed:
                module.returns_view = True


def _attended(
    attention: Any, x: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None, rotation: Rotation
) -> torch.Tensor:
    """Returns the output of the attention for x (rows, tokens, hidden), in the same shape."""
    heads = (*x.shape[:2], -1, attention.head_dim)
    query, key = attention.q_proj(x), attention.k_proj(x)
    value = attention.v_proj(x).view(heads).transpose(1, 2)
    if hasattr(attention, "q_norm"):
        query = _normed(attention.q_norm, query.reshape(heads)).flatten(2)
        key = _normed(attention.k_norm, key.reshape(heads)).flatten(2)
    both = _rotated(torch.cat([query, key], dim=-1).view(heads), rotation).transpose(1, 2)
    query, key = both.tensor_split([query.shape[-1] // attention.head_dim], dim=1)
    if cache is not None:
        key, value = cache.update(key, value, attention.layer_idx)
    output, _ = attend(attention, query, key, value, mask, scaling=attention.scaling)
    attended: torch.Tensor = attention.o_proj(output.flatten(2))
    return attended


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotated(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Returns heads (rows, tokens, heads, head_dim) rotated by their positions."""
    cos, sin = (part[:, :, None] for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return (x * cos).add_(torch.cat([-second, first], dim=-1).mul_(sin))
