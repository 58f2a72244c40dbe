"""On which GPUs a model is put; what is decided, without a GPU."""

import pytest
import torch

from services.generate.loading import device_map

GB = 10**9
FIRST = torch.device("cuda:0")


@pytest.mark.parametrize(
    ("name", "size_bytes", "free_bytes", "expected"),
    [
        ("auto", 14 * GB, {0: 24 * GB, 1: 24 * GB}, {"": "cuda:0"}),
        ("auto", 26 * GB, {0: 24 * GB, 1: 24 * GB}, "auto"),
        ("cuda", 20 * GB, {0: 24 * GB, 1: 24 * GB}, "auto"),
        ("cuda:0", 26 * GB, {0: 24 * GB, 1: 24 * GB}, {"": "cuda:0"}),
        ("auto", 26 * GB, {0: 24 * GB}, {"": "cuda:0"}),
    ],
    ids=["fits", "too large for one", "no room for its cache", "one was named", "there is one only"],
)
def test_a_model_is_spread_where_one_gpu_is_too_small(
    name: str, size_bytes: int, free_bytes: dict[int, int], expected: object
) -> None:
    assert device_map(name, FIRST, size_bytes, free_bytes) == expected
