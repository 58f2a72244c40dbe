"""The forward pass of the original LLaMA architecture, from its papers: an outside opinion on converted weights.

Sources: Touvron et al. 2023 (https://arxiv.org/abs/2302.13971, section 2.2), Su et al. 2021 for the rotation of
neighbouring pairs (https://arxiv.org/abs/2104.09864, eq. 13), Ainslie et al. 2023 for grouped key-value heads
(https://arxiv.org/abs/2305.13245), and the tensors' names and order of operations in facebookresearch/llama `model.py`.
"""

from collections.abc import Mapping
from typing import Any

import torch

State = Mapping[str, torch.Tensor]


def original_logits(state: State, params: Mapping[str, Any], tokens: list[int]) -> torch.Tensor:
    """Logits of one sequence in float32, shape (tokens, vocabulary), from an unsplit state dict with Meta's names."""
    weights = {name: tensor.float() for name, tensor in state.items()}
    eps = float(params["norm_eps"])
    heads = int(params["n_heads"])
    rotations = _rotations(int(params["dim"]) // heads, len(tokens), float(params.get("rope_theta", 10000.0)))
    x = weights["tok_embeddings.weight"][torch.tensor(tokens)]
    for layer in range(int(params["n_layers"])):
        at = f"layers.{layer}."
        of_layer = {name.removeprefix(at): w for name, w in weights.items() if name.startswith(at)}
        x = x + _attention(of_layer, _rms_norm(x, of_layer["attention_norm.weight"], eps), heads, rotations)
        x = x + _feed_forward(of_layer, _rms_norm(x, of_layer["ffn_norm.weight"], eps))
    return _rms_norm(x, weights["norm.weight"], eps) @ weights["output.weight"].T


def _rotations(head_dim: int, length: int, theta: float) -> torch.Tensor:
    """Unit complex numbers, shape (length, head_dim / 2): position t turns pair i by t * theta^(-2i / head_dim)."""
    speeds = theta ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    angles = torch.outer(torch.arange(length).double(), speeds)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def _rotated(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """x of shape (length, heads, head_dim), whose dimensions (0, 1), (2, 3), … are the complex pairs."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * rotations[:, None, :]).reshape(x.shape)


def _attention(weights: State, x: torch.Tensor, heads: int, rotations: torch.Tensor) -> torch.Tensor:
    length, head_dim = x.shape[0], 2 * rotations.shape[1]
    query = _rotated((x @ weights["attention.wq.weight"].T).view(length, heads, head_dim), rotations)
    key = _rotated((x @ weights["attention.wk.weight"].T).view(length, -1, head_dim), rotations)
    value = (x @ weights["attention.wv.weight"].T).view(length, -1, head_dim)
    repeats = heads // key.shape[1]
    key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) / head_dim**0.5
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    shares = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    mixed = torch.einsum("hqk,khd->qhd", shares, value).reshape(length, heads * head_dim)
    return mixed @ weights["attention.wo.weight"].T


def _feed_forward(weights: State, x: torch.Tensor) -> torch.Tensor:
    gate = x @ weights["feed_forward.w1.weight"].T
    up = x @ weights["feed_forward.w3.weight"].T
    return (gate * torch.sigmoid(gate) * up) @ weights["feed_forward.w2.weight"].T


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight
