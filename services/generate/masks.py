"""Attention masks of rows that each begin at column 0 of a KV cache, for one new token or several."""

from typing import Any

import torch

MASK_BY_LAYER = ("gemma2", "gemma3_text", "qwen2", "qwen3", "smollm3")
"""Model types that take one mask for each type of layer in `layer_types`."""

ONE_MASK = ("mistral", "phi3", "starcoder2")
"""Model types all of whose layers have the window `sliding_window`."""

ALIGNMENT = 8
"""Columns of a mask are a multiple of this: kernels for CUDA need its rows aligned."""

Masks = torch.Tensor | dict[str, torch.Tensor]
"""One mask for all layers, or one for each type of layer."""


def window_of(config: Any) -> int | None:
    """Returns the window of a model's sliding layers, None if it has none or is not among the types above."""
    known = config.model_type in (*MASK_BY_LAYER, *ONE_MASK)
    window = getattr(config, "sliding_window", None)
    return int(window) if known and window else None


def masks_of(config: Any, positions: torch.Tensor, width: int, dtype: torch.dtype) -> Masks:
    """Returns the masks of a forward pass.

    Args:
        config: of the model.
        positions: (rows, tokens), the column of each new token.
        width: Number of columns.
    """
    windowed = additive_mask(positions, width, dtype, window_of(config))
    if config.model_type not in MASK_BY_LAYER:
        return windowed
    return {"full_attention": additive_mask(positions, width, dtype), "sliding_attention": windowed}


def additive_mask(
    positions: torch.Tensor, width: int, dtype: torch.dtype, window: int | None = None
) -> torch.Tensor:
    """Returns a mask (rows, 1, tokens, columns) that is 0 where a token sees a column.

    Args:
        positions: (rows, tokens), the column of each token.
        width: Number of columns.
        window: Number of tokens that are seen, the new one included; None for all.
    """
    columns = torch.arange(width, device=positions.device)
    unseen = columns > positions[..., None]
    if window is not None:
        unseen |= columns <= positions[..., None] - window
    mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
    mask.masked_fill_(unseen, torch.finfo(dtype).min)
    return mask[:, None]


def rounded_up(number: int, multiple: int) -> int:
    """Returns the next multiple that is not below a number."""
    return -(-number // multiple) * multiple
