"""Merge of adapters into a base model, in order, tensor by tensor; every tensor of an adapter is used once."""

from services.merge.accounts import ScaledAdapter, changes_of, release_tensor, scaled_stack
from services.merge.merging import Merged, MergeOptions, merge, merged_blocks, merged_output

__all__ = [
    "MergeOptions",
    "Merged",
    "ScaledAdapter",
    "changes_of",
    "merge",
    "merged_blocks",
    "merged_output",
    "release_tensor",
    "scaled_stack",
]
