"""Original checkpoints that a conversion refuses, by name and with both values."""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from services.convert import convert
from services.errors import (
    ConfigMismatch,
    GraftwerkError,
    IncompleteCheckpoint,
    NonFiniteTensor,
    ShapeMismatch,
    UnknownTensor,
    UnreadableFile,
    UnsafePickle,
    UnsupportedFormat,
    VocabularyMismatch,
)
from services.models.store import ModelStore
from tests.contract.original_models import saved
from tests.reference.make_original import SMALL, State, random_state


@contextmanager
def refused(source: Path, error: type[GraftwerkError], *phrases: str) -> Iterator[None]:
    """The conversion of `source` is refused with these words, and the volume is left as it was."""
    yield
    store = ModelStore(source.parent / "volume")
    with pytest.raises(error) as caught, store.publishing("model", execution="e1") as staging:
        convert(source, staging)
    text = f"{caught.value.message} {caught.value.hint}"
    for phrase in phrases:
        assert phrase in text
    assert store.names() == []
    assert list((store.root / ".staging").iterdir()) == []


def change_rank(source: Path, rank: int, change: Callable[[State], None]) -> None:
    path = source / f"consolidated.{rank:02d}.pth"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_norms_that_differ_between_ranks_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", ranks=4)

    def other_value(state: State) -> None:
        state["layers.1.ffn_norm.weight"][5] += 0.25

    with refused(source, ConfigMismatch, "'layers.1.ffn_norm.weight' differs between rank 0 and rank 2"):
        change_rank(source, 2, other_value)


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", ranks=4)
    with refused(source, IncompleteCheckpoint, "ranks [0, 1, 3]; rank 2 is missing", "consolidated.02.pth"):
        (source / "consolidated.02.pth").unlink()


def test_a_missing_last_rank_shows_in_the_sizes(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", ranks=4)
    with refused(source, IncompleteCheckpoint, "36 columns over 3 ranks", "norm.weight has 48"):
        (source / "consolidated.03.pth").unlink()


def test_a_truncated_file_is_refused_with_its_size(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", ranks=2)
    path = source / "consolidated.01.pth"
    with refused(source, UnreadableFile, "consolidated.01.pth has 50000 bytes", "truncated"):
        path.write_bytes(path.read_bytes()[:50_000])


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", ranks=2)
    with refused(source, UnknownTensor, "consolidated.00.pth holds 'layers.0.attention.wq.scales'"):
        for rank in range(2):
            change_rank(source, rank, lambda s: s.update({"layers.0.attention.wq.scales": torch.ones(48)}))


def test_a_tensor_in_one_rank_only_is_named(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", ranks=2)
    with refused(
        source,
        IncompleteCheckpoint,
        "consolidated.00.pth and consolidated.01.pth",
        "'layers.2.attention.wv.weight'",
    ):
        change_rank(source, 1, lambda s: s.pop("layers.2.attention.wv.weight"))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    source = saved(tmp_path / "source")
    with refused(
        source, IncompleteCheckpoint, "1 of 30 tensors are missing", "'layers.1.feed_forward.w3.weight'"
    ):
        change_rank(source, 0, lambda s: s.pop("layers.1.feed_forward.w3.weight"))


def test_a_part_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", ranks=2)
    with refused(source, ShapeMismatch, "[48, 70] F16 + [48, 69] F16 over 2 ranks", "[48, 140]"):
        change_rank(
            source, 1, lambda s: s.update({"layers.1.feed_forward.w2.weight": torch.ones(48, 69).half()})
        )


@pytest.mark.parametrize(
    ("params", "phrases"),
    [
        ({"dim": 64}, ("dim = 64", "48")),
        ({"n_layers": 4}, ("n_layers = 4", "3")),
        ({"n_heads": 6}, ("n_heads = 6", "8")),
        ({"n_heads": 7}, ("n_heads = 7", "8")),
        ({"n_heads": 16}, ("n_heads = 16", "8")),
        ({"n_heads": 6, "n_kv_heads": None}, ("n_heads = 6", "8")),
        ({"n_kv_heads": 8}, ("n_kv_heads = 8", "4")),
        ({"vocab_size": 100}, ("vocab_size = 100", "101")),
        ({"multiple_of": 32}, ("128", "140 rows")),
        ({"ffn_dim_multiplier": 1.3}, ("180", "1.3", "140 rows")),
    ],
)
def test_params_that_disagree_with_the_tensors_are_refused_with_both_values(
    tmp_path: Path, params: dict[str, Any], phrases: tuple[str, ...]
) -> None:
    source = saved(tmp_path / "source", ranks=2, params=params)
    with refused(source, ConfigMismatch, "params.json", *phrases):
        pass


@pytest.mark.parametrize(
    "params",
    [
        {"n_heads": None}, {"n_heads": 0}, {"n_heads": -8}, {"n_heads": float("nan")}, {"n_heads": float("inf")},
        {"n_heads": "8"}, {"n_heads": True}, {"n_heads": 10**30}, {"norm_eps": None}, {"norm_eps": "small"},
        {"norm_eps": float("nan")}, {"norm_eps": 0}, {"rope_theta": "10000"}, {"rope_theta": [1]}, {"rope_theta": float("inf")},
        {"multiple_of": "20"}, {"multiple_of": -20}, {"multiple_of": float("nan")}, {"ffn_dim_multiplier": "1.3"},
        {"ffn_dim_multiplier": float("inf")}, {"max_seq_len": "long"}, {"max_seq_len": float("inf")},
        {"max_seq_len": -1}, {"dim": "48"}, {"dim": [48]},
        {"use_scaled_rope": True, "rope_scaling_factor": "eight"},
    ],
)  # fmt: skip
def test_params_that_are_no_sensible_numbers_are_refused_by_name(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    source = saved(tmp_path / "source", params=params)
    with refused(source, GraftwerkError, "params.json", *list(params)[-1:]):
        pass


def test_a_head_size_that_cannot_be_rotated_is_refused(tmp_path: Path) -> None:
    """48 rows and 16 heads make 3 dimensions a head: pairs are needed."""
    source = saved(tmp_path / "source", params={"n_heads": 16, "n_kv_heads": None})
    with refused(source, ConfigMismatch, "n_heads = 16"):
        change_rank(source, 0, lambda s: s.pop("rope.freqs"))


def test_a_tokenizer_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", pieces=103)
    with refused(source, VocabularyMismatch, "knows 103 tokens", "101 rows"):
        pass


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, float("nan")),
        (torch.float16, float("-inf")),
        (torch.bfloat16, float("inf")),
        (torch.float32, float("nan")),
    ],
)
def test_a_value_that_is_no_number_is_refused_by_the_tensors_name(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    source = saved(tmp_path / "source", ranks=2, state=random_state(SMALL, dtype))

    def spoil(state: State) -> None:
        state["layers.2.attention.wk.weight"][7, 11] = value

    with refused(source, NonFiniteTensor, "'model.layers.2.self_attn.k_proj.weight' holds 1 values", "1152"):
        change_rank(source, 1, spoil)


class Touch:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def test_a_pickle_that_would_run_something_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    source = saved(tmp_path / "source")
    with refused(
        source, UnsafePickle, "consolidated.00.pth", "system, which is not a tensor; it was not run"
    ):
        torch.save({**random_state(SMALL), "extra": Touch(marker)}, source / "consolidated.00.pth")
    assert not marker.exists()


def test_a_pickle_without_an_archive_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    source = saved(tmp_path / "source")
    with refused(source, UnreadableFile, "consolidated.00.pth", "not written by torch.save"):
        (source / "consolidated.00.pth").write_bytes(pickle.dumps(Touch(marker)))
    assert not marker.exists()


def test_the_pickle_format_of_2020_is_refused_with_the_way_out(tmp_path: Path) -> None:
    source = saved(tmp_path / "source")
    with refused(
        source, UnsupportedFormat, "torch before 1.6", "torch.save(torch.load(f, weights_only=True), f)"
    ):
        torch.save(random_state(SMALL), source / "consolidated.00.pth", _use_new_zipfile_serialization=False)
