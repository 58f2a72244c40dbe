"""Original checkpoints with a change that a test needs."""

from pathlib import Path
from typing import Any

from tests.reference.make_original import SMALL, Sizes, random_state, save_original, split_ranks


def saved(folder: Path, *, ranks: int = 1, sizes: Sizes = SMALL, **change: Any) -> Path:
    """A checkpoint with values of its own, its `params` or `state` changed where a test asks for it."""
    state = change.pop("state", None) or random_state(sizes)
    params = {**sizes.params, **change.pop("params", {})}
    return save_original(folder, split_ranks(state, ranks), params, **change)
