"""Linear layers for a few rows, against the product in float64."""

from typing import Any

import pytest
import torch
from torch import nn

from services.generate import LoadedModel
from services.generate.row_linear import LEAST_ROWS, MOST_ROWS, RowLinear, product, use_row_linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(1,), (LEAST_ROWS,), (2, 5), (16, 1), (17,), (MOST_ROWS,), (1, 64), (3, 1, 7)]
)
@torch.inference_mode()
def test_the_product_is_that_of_float64(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(40, 24, bias=bias)
    rows = torch.randn(*shape, 40)
    expected = rows.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    use_row_linear(layer)
    found = layer(rows)
    assert (found.shape, found.is_contiguous()) == (expected.shape, True)
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("rows", [1, LEAST_ROWS, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_product_alone_is_that_of_float64(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 40, dtype=dtype), torch.randn(8, 40, dtype=dtype)
    found = product(x, weight)
    assert found.dtype == dtype
    assert torch.allclose(
        found.double(),
        x.double() @ weight.double().T,
        rtol=1e-2 if dtype == torch.bfloat16 else 1e-5,
        atol=1e-5,
    )


@torch.inference_mode()
def test_a_view_has_the_same_bits_as_its_copy() -> None:
    layer: Any = nn.Linear(40, 24)
    use_row_linear(layer)
    rows = torch.randn(16, 1, 40)
    expected = layer(rows)
    layer.returns_view = True
    found = layer(rows)
    assert (found.is_contiguous(), torch.equal(found, expected)) == (False, True)


@torch.inference_mode()
def test_a_row_is_the_same_bits_with_any_other_rows() -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(576, 192)
    use_row_linear(layer)
    rows = torch.randn(16, 576)
    whole = layer(rows)
    for count in range(LEAST_ROWS, 16):
        assert torch.equal(layer(rows[:count]), whole[:count])
    assert torch.equal(layer(rows.flip(0)), whole.flip(0))


@torch.inference_mode()
def test_the_weight_of_a_larger_vocabulary_may_take_the_place_of_the_own_one() -> None:
    layer: Any = nn.Linear(40, 24, bias=False)
    use_row_linear(layer)
    layer.weight = nn.Parameter(torch.randn(30, 40))
    rows = torch.randn(1, 23, 40)
    assert torch.allclose(layer(rows), rows @ layer.weight.T, atol=1e-5)


def test_only_float32_layers_of_the_plain_class_are_changed(loaded: LoadedModel) -> None:
    layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16), nn.Bilinear(4, 4, 4)])
    use_row_linear(layers)
    assert [type(layer) for layer in layers] == [RowLinear, nn.Linear, nn.Bilinear]
    assert any(type(module) is RowLinear for module in loaded.model.modules())
