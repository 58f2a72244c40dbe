"""Random original checkpoints as Meta's model-parallel training wrote them, small and able to fail.

Source of the split: facebookresearch/llama `model.py` (ColumnParallelLinear holds rows, RowParallelLinear and
ParallelEmbedding columns); the vocabulary's rest lies on the last rank, as in the published 13B files.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.reference.tokenizer_files import piece_names, sentencepiece_file

State = dict[str, torch.Tensor]

COLUMN_SPLIT = ("attention.wo.weight", "feed_forward.w2.weight")
ROW_SPLIT = (
    "attention.wq.weight", "attention.wk.weight", "attention.wv.weight", "feed_forward.w1.weight",
    "feed_forward.w3.weight", "output.weight",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Sizes that do not coincide: head_dim 6, 101 tokens, feed-forward width 140."""

    dim: int = 48
    n_layers: int = 3
    n_heads: int = 8
    n_kv_heads: int = 4
    vocab_size: int = 101
    multiple_of: int = 20
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def ffn(self) -> int:
        return self.multiple_of * math.ceil(int(8 * self.dim / 3) / self.multiple_of)

    @property
    def params(self) -> dict[str, Any]:
        return {
            "dim": self.dim, "n_layers": self.n_layers, "n_heads": self.n_heads, "n_kv_heads": self.n_kv_heads,
            "multiple_of": self.multiple_of, "norm_eps": self.norm_eps, "vocab_size": -1,
        }  # fmt: skip


SMALL = Sizes()
WIDE = Sizes(dim=96, n_heads=16, n_kv_heads=8, multiple_of=24)
"""For eight ranks, each of which needs whole heads: feed-forward width 264."""


def random_state(sizes: Sizes, dtype: torch.dtype = torch.float16, seed: int = 7) -> State:
    """A whole (unsplit) state dict under Meta's names, `rope.freqs` among it."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    def norm() -> torch.Tensor:
        return (1 + 0.2 * torch.randn(sizes.dim, generator=generator)).to(dtype)

    dim, kv_rows = sizes.dim, sizes.n_kv_heads * sizes.head_dim
    state = {"tok_embeddings.weight": weight(sizes.vocab_size, dim), "norm.weight": norm()}
    state["output.weight"] = weight(sizes.vocab_size, dim)
    for layer in range(sizes.n_layers):
        of_layer = {
            "attention.wq.weight": weight(dim, dim) * 2, "attention.wk.weight": weight(kv_rows, dim) * 2,
            "attention.wv.weight": weight(kv_rows, dim), "attention.wo.weight": weight(dim, dim),
            "feed_forward.w1.weight": weight(sizes.ffn, dim), "feed_forward.w2.weight": weight(dim, sizes.ffn),
            "feed_forward.w3.weight": weight(sizes.ffn, dim), "attention_norm.weight": norm(),
            "ffn_norm.weight": norm(),
        }  # fmt: skip
        state |= {f"layers.{layer}.{name}": tensor for name, tensor in of_layer.items()}
    state["rope.freqs"] = 10000.0 ** -(torch.arange(0, sizes.head_dim, 2).float() / sizes.head_dim)
    return state


def split_ranks(state: Mapping[str, torch.Tensor], ranks: int, embedding_dim: int = 1) -> list[State]:
    """The state dict of each rank; the embeddings are split by columns (1) or, as in Llama 3, by rows (0)."""
    parts: list[State] = [{} for _ in range(ranks)]
    for name, tensor in state.items():
        pieces = _pieces(name, tensor, ranks, embedding_dim)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def _pieces(name: str, tensor: torch.Tensor, ranks: int, embedding_dim: int) -> Sequence[torch.Tensor]:
    if name == "tok_embeddings.weight":
        dim = embedding_dim
    elif name.endswith(COLUMN_SPLIT):
        dim = 1
    elif name.endswith(ROW_SPLIT):
        dim = 0
    else:
        return [tensor] * ranks
    step = tensor.shape[dim] // ranks
    return tensor.split([step] * (ranks - 1) + [tensor.shape[dim] - step * (ranks - 1)], dim)


def save_original(
    weights: Path,
    parts: Sequence[Mapping[str, torch.Tensor]],
    params: Mapping[str, Any],
    *,
    tokenizer: Path | None = None,
    pieces: int = SMALL.vocab_size,
) -> Path:
    """Writes `consolidated.NN.pth`, `params.json` and the tokenizer (next to the weights where no folder is given)."""
    weights.mkdir(parents=True, exist_ok=True)
    for rank, part in enumerate(parts):
        torch.save(dict(part), weights / f"consolidated.{rank:02d}.pth")
    (weights / "params.json").write_text(json.dumps(dict(params)))
    ((tokenizer or weights) / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(pieces)))
    return weights
