"""Rotary permutation between Meta's interleaved pairs and Hugging Face's halves.

Meta rotates the pairs (0, 1), (2, 3), … of each head (Su et al. 2021, eq. 15); transformers rotates dimension i with
i + head_dim/2. The rows of wq and wk are reordered so that both compute the same.
"""

import torch


def interleaved_to_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns a weight in Hugging Face's order of rows, from Meta's.

    Args:
        weight: Shape (heads * head_dim, columns) or (heads * head_dim,), any dtype.
        heads: Query heads for wq, key-value heads for wk.

    Returns:
        A tensor of the same shape and dtype whose rows are those of `weight` reordered within each head.
    """
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def halves_to_interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns a weight in Meta's order of rows, from Hugging Face's: the inverse of `interleaved_to_halves`, same shapes."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)
