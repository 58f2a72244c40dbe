"""Products of a chosen rank against numpy's singular value decomposition."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.adapter_tools import factorization
from services.adapter_tools.blocks import Matrix, deviation_of
from services.adapter_tools.factorization import Spectrum, factorize, factorize_product

RANK = 7


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(rows: int, columns: int, singular: torch.Tensor) -> torch.Tensor:
    """A matrix with these singular values."""
    size = len(singular)
    left, right = (torch.linalg.qr(draw(n, size, seed=n)).Q for n in (rows, columns))
    return (left * singular) @ right.T


def in_blocks(values: torch.Tensor, step: int = 53) -> Matrix:
    def blocks() -> Iterator[torch.Tensor]:
        return (values[start : start + step] for start in range(0, len(values), step))

    rows, columns = values.shape
    return Matrix((rows, columns), blocks)


MATRICES = {
    "rank 7": draw(130, RANK, seed=1) @ draw(RANK, 170, seed=2),
    "rank 7 and rounding": draw(130, RANK, seed=1) @ draw(RANK, 170, seed=2) + 1e-3 * draw(130, 170, seed=3),
    "slow decay": spectrum(130, 170, 1 / torch.arange(1, 131, dtype=torch.float64)),
    "noise": draw(130, 170, seed=4),
}


def singular_values(values: torch.Tensor) -> NDArray[Any]:
    return np.asarray(np.linalg.svd(values.numpy(), compute_uv=False))


def best_error(values: torch.Tensor, rank: int) -> float:
    squares = singular_values(values) ** 2
    return float(np.sqrt(squares[rank:].sum() / squares.sum()))


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("exact_size", [512, 0], ids=["exact", "iterated"])
@pytest.mark.parametrize("name", MATRICES)
def test_the_error_is_the_smallest_that_the_rank_allows(
    monkeypatch: pytest.MonkeyPatch, name: str, exact_size: int, turned: bool
) -> None:
    monkeypatch.setattr(factorization, "EXACT_SIZE", exact_size)
    values = MATRICES[name].T if turned else MATRICES[name]

    found = factorize(in_blocks(values), RANK)

    expected = best_error(values, RANK)
    product = found.b.double().numpy() @ found.a.double().numpy()
    measured = float(np.linalg.norm(product - values.numpy()) / np.linalg.norm(values.numpy()))
    assert measured == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert found.spectrum.error(RANK) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert deviation_of(in_blocks(values), found.a, found.b).error == pytest.approx(measured, rel=1e-9)
    assert np.allclose(found.spectrum.singular[:RANK], singular_values(values)[:RANK], rtol=1e-3)


@pytest.mark.parametrize("exact_size", [512, 0], ids=["exact", "iterated"])
def test_the_same_matrix_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, exact_size: int) -> None:
    monkeypatch.setattr(factorization, "EXACT_SIZE", exact_size)
    matrix = in_blocks(MATRICES["slow decay"])
    one = factorize(matrix, RANK)
    torch.rand(5)
    other = factorize(matrix, RANK)
    assert torch.equal(one.a, other.a)
    assert torch.equal(one.b, other.b)


def test_a_product_is_reduced_as_its_whole_matrix_is() -> None:
    b, a = draw(90, 20, seed=5).float(), draw(20, 110, seed=6).float()
    found = factorize_product(b, a, RANK)
    expected = best_error(b.double() @ a.double(), RANK)
    assert found.spectrum.error(RANK) == pytest.approx(expected, rel=1e-6)
    product = found.b.double() @ found.a.double()
    assert deviation_of(in_blocks(b.double() @ a.double()), found.a, found.b).error == pytest.approx(
        expected, rel=1e-6
    )
    assert torch.linalg.matrix_rank(product) == RANK


def test_a_product_of_more_directions_than_rows_is_reduced_too() -> None:
    b, a = draw(6, 20, seed=5), draw(20, 9, seed=6)
    found = factorize_product(b, a, 20)
    assert (found.a.shape, found.b.shape) == ((20, 9), (6, 20))
    assert torch.allclose(found.b.double() @ found.a.double(), b @ a, atol=1e-5)


def test_a_rank_beyond_the_matrix_is_filled_up_with_zeros() -> None:
    values = draw(5, 12, seed=7)
    found = factorize(in_blocks(values), 8)
    assert (found.a.shape, found.b.shape) == ((8, 12), (5, 8))
    assert not found.a[5:].any()
    assert not found.b[:, 5:].any()
    assert deviation_of(in_blocks(values), found.a, found.b).error < 1e-7


def test_no_change_at_all_gives_zeros_and_no_error() -> None:
    found = factorize(in_blocks(torch.zeros(5, 12, dtype=torch.float64)), 3)
    assert not found.b.any()
    assert found.spectrum.error(3) == 0
    assert deviation_of(in_blocks(torch.zeros(5, 12, dtype=torch.float64)), found.a, found.b).error == 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_float16_holds_both_factors(scale: float) -> None:
    values = MATRICES["rank 7"] * scale
    found = factorize(in_blocks(values), RANK)
    product = found.b.half().double() @ found.a.half().double()
    assert float((product - values).norm() / values.norm()) < 2e-3
    assert float(found.a.norm()) == pytest.approx(float(found.b.norm()), rel=1e-5)


def test_the_rank_for_an_error_is_the_smallest_one() -> None:
    values = MATRICES["slow decay"]
    found = factorize(in_blocks(values), RANK)
    rank = found.spectrum.rank_for(0.1)
    assert best_error(values, rank) <= 0.1 < best_error(values, rank - 1)


def test_the_rank_for_an_error_is_a_lower_bound_where_fewer_values_are_known() -> None:
    found = Spectrum([3.0, 2.0], 9 + 4 + 3 * 1.5**2)
    assert found.rank_for(0.0) == 2 + 2  # 6.75 left; a further direction takes 4 at most
    assert found.rank_for(0.9) == 1
