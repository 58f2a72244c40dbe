"""The forward pass of the original LLaMA architecture, from its papers: an outside opinion on converted weights.

Sources: Touvron et al. 2023 (https://arxiv.org/abs/2302.13971, section 2.2), Su et al. 2021 for the rotation of
neighbouring pairs (https://arxiv.org/abs/2104.09864, eq. 13), Ainslie et al. 2023 for grouped key-value heads
(https://arxiv.org/abs/2305.13245), the tensors' names and order of operations in facebookresearch/llama `model.py`, and
`apply_scaling` of meta-llama/llama-models `model.py` for the scaled rotation.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

State = Mapping[str, torch.Tensor]


def original_logits(state: State, params: Mapping[str, Any], tokens: list[int]) -> torch.Tensor:
    """Logits of one sequence in float32, shape (tokens, vocabulary), from an unsplit state dict with Meta's names."""
    weights = {name: tensor.float() for name, tensor in state.items()}
    eps = float(params["norm_eps"])
    heads = int(params["n_heads"])
    speeds = _speeds(int(params["dim"]) // heads, float(params.get("rope_theta", 10000.0)))
    if params.get("use_scaled_rope"):
        speeds = _scaled(speeds, float(params["rope_scaling_factor"]))
    rotations = _rotations(len(tokens), speeds)
    x = weights["tok_embeddings.weight"][torch.tensor(tokens)]
    for layer in range(int(params["n_layers"])):
        at = f"layers.{layer}."
        of_layer = {name.removeprefix(at): w for name, w in weights.items() if name.startswith(at)}
        x = x + _attention(of_layer, _rms_norm(x, of_layer["attention_norm.weight"], eps), heads, rotations)
        x = x + _feed_forward(of_layer, _rms_norm(x, of_layer["ffn_norm.weight"], eps))
    output = weights.get("output.weight", weights["tok_embeddings.weight"])  # tied where there is none
    return _rms_norm(x, weights["norm.weight"], eps) @ output.T


def _speeds(head_dim: int, theta: float) -> torch.Tensor:
    """Radians by which each of head_dim / 2 pairs turns from one position to the next: theta^(-2i / head_dim)."""
    return theta ** -(torch.arange(0, head_dim, 2).double() / head_dim)


def _scaled(speeds: torch.Tensor, factor: float) -> torch.Tensor:
    """Llama 3.1's: slow pairs turn `factor` times more slowly, fast ones as before, those between by interpolation.

    A pair is slow when it turns fewer than once in 8192 positions, fast when more than four times.
    """
    scaled = []
    for speed in speeds.tolist():
        turns = 8192 * speed / (2 * math.pi)
        kept = min(max((turns - 1) / (4 - 1), 0.0), 1.0)
        scaled.append(kept * speed + (1 - kept) * speed / factor)
    return torch.tensor(scaled, dtype=speeds.dtype)


def _rotations(length: int, speeds: torch.Tensor) -> torch.Tensor:
    """Unit complex numbers, shape (length, head_dim / 2): position t turns pair i by t times its speed."""
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
