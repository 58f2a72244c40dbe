"""Combined adapters against PEFT's own combinations of the same adapters."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import prune, task_arithmetic, ties
from safetensors.torch import load_file, save_file

from services.adapter_tools import Combined, CombineOptions, combine
from services.adapter_tools.methods import Change, Sparsity, ties_of
from services.errors import (
    UnsupportedAdapter,
)
from tests.contract.merge_models import EMBEDDINGS, merged, tensors_of
from tests.reference.peft_merge import (
    State,
    make_adapter,
    random_model,
    rewrite_weights,
    save_model,
    write_tokenizer,
)

PEFT_TYPES = {"concatenate": "cat", "linear": "svd", "ties": "ties_svd"}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of different ranks, scalings and target modules."""
    folder = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(folder / "first", seed=1, r=8, lora_alpha=20),
        make_adapter(folder / "second", seed=2, r=5, lora_alpha=7, target_modules=["q_proj", "v_proj", "down_proj"]),
        make_adapter(folder / "third", seed=3, r=3, lora_alpha=9, use_rslora=True, target_modules=["v_proj", "embed_tokens"]),
    ]  # fmt: skip


SCALES = [1.0, -0.5, 2.0]


def combined(
    folders: Sequence[Path], target: Path, scales: Sequence[float] = SCALES, **options: Any
) -> Combined:
    target.mkdir()
    chosen = [(path.name, path, scale) for path, scale in zip(folders, scales, strict=False)]
    return combine(chosen, target, CombineOptions(**{"method": "concatenate", **options}))


def state_of(folder: Path) -> State:
    return load_file(folder / "adapter_model.safetensors")


def products(state: State, scale: float = 1.0) -> State:
    """The product B @ A of each pair, in float64."""
    found = {}
    for key, a in state.items():
        if ".lora_A." in key or key.endswith(".lora_embedding_A"):
            b = state[key.replace("_A", "_B")]
            found[key] = b.double() @ a.double() * scale
    return found


def changes(folder: Path) -> State:
    """The change that a plain or rsLoRA adapter makes of each module."""
    config = json.loads((folder / "adapter_config.json").read_text())
    root = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    return products(state_of(folder), config["lora_alpha"] / root)


def by_peft(
    folders: Sequence[Path], scales: Sequence[float], kind: str, rank: int, density: float = 0.5
) -> State:
    """The factors that `add_weighted_adapter` computes, under the keys of a file."""
    model = PeftModel.from_pretrained(random_model(torch.float32), folders[0], adapter_name="a0")
    names = [f"a{number}" for number in range(len(folders))]
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    model.add_weighted_adapter(
        names, list(scales), "sum", combination_type=kind, svd_rank=rank, density=density
    )
    return {
        name.replace(".sum", ""): tensor
        for name, tensor in model.state_dict().items()
        if ".sum" in name and "lora_" in name
    }


def test_concatenated_factors_have_pefts_bits(tmp_path: Path, three: list[Path]) -> None:
    result = combined(three, tmp_path / "sum")
    found, expected = state_of(tmp_path / "sum"), by_peft(three, SCALES, "cat", 0)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert result.rank == 8 + 5 + 3
    assert result.error < 1e-6
    assert not result.warnings


def test_the_sum_of_the_changes_is_exact_without_a_rank(tmp_path: Path, three: list[Path]) -> None:
    expected: State = {}
    for folder, scale in zip(three, SCALES, strict=True):
        for name, change in changes(folder).items():
            expected[name] = expected.get(name, torch.zeros_like(change)) + scale * change
    for method in ("concatenate", "linear"):
        result = combined(three, tmp_path / method, method=method)
        config = json.loads((tmp_path / method / "adapter_config.json").read_text())
        found = products(state_of(tmp_path / method), config["lora_alpha"] / config["r"])
        assert found.keys() == expected.keys()
        for name, change in expected.items():
            assert torch.allclose(found[name], change, rtol=1e-5, atol=1e-6), name
        assert result.error < 1e-6


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("rank", [4, 16])
def test_a_rank_gives_the_product_that_peft_computes(
    tmp_path: Path, three: list[Path], method: str, rank: int
) -> None:
    density = 0.3 if method == "ties" else 0.5
    result = combined(three, tmp_path / "found", method=method, rank=rank, density=density)
    found = products(state_of(tmp_path / "found"))
    expected = products(by_peft(three, SCALES, PEFT_TYPES[method], rank, density))
    assert found.keys() == expected.keys()
    for name, product in expected.items():
        assert float((found[name] - product).norm()) < 1e-3 * float(product.norm()), name
    assert result.rank == rank
    if method == "ties":
        assert "leaves an error above 0.1" in result.warnings[0]


def test_the_error_is_what_the_singular_values_leave(tmp_path: Path, three: list[Path]) -> None:
    result = combined(three[:2], tmp_path / "found", method="concatenate", rank=6)
    errors = {item.tensor: item for item in result.errors}
    one, two = changes(three[0]), changes(three[1])
    for name in one:
        whole = (one[name] - 0.5 * two[name] if name in two else one[name]).numpy()
        squares = np.linalg.svd(whole, compute_uv=False) ** 2
        tensor = name.removeprefix("base_model.model.").replace(".lora_A", "")
        assert errors[tensor].error == pytest.approx(np.sqrt(squares[6:].sum() / squares.sum()), rel=1e-4)
        assert errors[tensor].norm == pytest.approx(np.linalg.norm(whole))


def test_dare_is_pefts_with_the_mask_of_the_seed(tmp_path: Path, three: list[Path]) -> None:
    folders, scales, density = three[:2], SCALES[:2], 0.4
    combined(folders, tmp_path / "found", method="dare", rank=48, density=density, seed=5)
    found = products(state_of(tmp_path / "found"))
    for name in found:
        module = name.removeprefix("base_model.model.").split(".lora_")[0]
        sparsity = Sparsity(density, 5, module)
        pruned, weights = [], []
        for position, folder in enumerate(folders):
            change = changes(folder).get(name)
            if change is not None:
                torch.manual_seed(sparsity.generator(position).initial_seed())
                pruned.append(prune(change.float(), density, method="random", rescale=True))
                weights.append(scales[position])
        expected = task_arithmetic(pruned, torch.tensor(weights)).double()
        assert float((found[name] - expected).norm()) < 1e-5 * float(expected.norm()), name
        kept = float((pruned[0] != 0).double().mean())
        assert kept == pytest.approx(density, abs=0.05)


def test_the_seed_decides_and_nothing_else(tmp_path: Path, three: list[Path]) -> None:
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        combined(three[:2], tmp_path / name, method="dare", seed=seed)
        torch.rand(3)
    one, same, other = (state_of(tmp_path / name) for name in ("one", "same", "other"))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("density", [0.001, 0.3, 0.5, 1.0])
def test_ties_in_blocks_is_pefts_ties(monkeypatch: pytest.MonkeyPatch, density: float) -> None:
    monkeypatch.setattr("services.checkpoints.blocks.BLOCK_ELEMENTS", 700)
    generator = torch.Generator().manual_seed(9)
    parts = [
        Change(
            torch.randn(4, 70, generator=generator),
            torch.randn(50, 4, generator=generator),
            scaling,
            weight,
            n,
        )
        for n, (scaling, weight) in enumerate([(0.5, 1.0), (2.0, -1.5), (1.0, 0.25)])
    ]
    found = ties_of(parts, Sparsity(density, 0, "x")).whole()
    deltas = [part.b @ part.a * part.scaling for part in parts]
    if density == 1.0:
        with pytest.warns(UserWarning, match="no pruning"):
            expected = ties(deltas, torch.tensor([1.0, -1.5, 0.25]), density)
    else:
        expected = ties(deltas, torch.tensor([1.0, -1.5, 0.25]), density)
    assert torch.allclose(found.float(), expected, atol=1e-5)
    assert int((found != 0).sum()) == int((expected != 0).sum())


def test_merging_it_is_merging_them_all(tmp_path: Path, three: list[Path]) -> None:
    base = save_model(random_model(torch.float32), tmp_path / "base")
    combined(three, tmp_path / "sum")
    merged(base, [tmp_path / "sum"], tmp_path / "one", rounding="once")
    merged(base, three, tmp_path / "all", scales=SCALES, rounding="once")
    one, every = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "all")
    for name, tensor in every.items():
        assert torch.allclose(one[name], tensor, atol=1e-5), name


def test_halves_and_pickled_files_are_read_too(tmp_path: Path, three: list[Path]) -> None:
    copies = [Path(shutil.copytree(path, tmp_path / path.name)) for path in three[:2]]
    for copy in copies:
        state = {name: tensor.half() for name, tensor in state_of(copy).items()}
        save_file(state, copy / "adapter_model.safetensors")
    expected: State = {}
    for copy in copies:
        for name, change in changes(copy).items():
            expected[name] = expected.get(name, torch.zeros_like(change)) + change
    for copy in copies:
        rewrite_weights(copy, ending="bin", inner_name="default")
    combined(copies, tmp_path / "sum", [1.0, 1.0])
    for name, change in products(state_of(tmp_path / "sum")).items():
        assert torch.allclose(change, expected[name], atol=1e-6), name


def test_what_one_adapter_replaces_goes_along_with_its_tokenizer(tmp_path: Path, three: list[Path]) -> None:
    grown = make_adapter(tmp_path / "grown", seed=4, vocabulary=113, modules_to_save=EMBEDDINGS)
    plain = Path(shutil.copytree(three[1], tmp_path / "plain"))
    write_tokenizer(grown, 113)
    write_tokenizer(plain, 101)
    result = combined([plain, grown], tmp_path / "sum", [1.0, 1.0])
    base = save_model(random_model(torch.float32), tmp_path / "base")
    merged(base, [tmp_path / "sum"], tmp_path / "one", rounding="once")
    merged(base, [plain, grown], tmp_path / "all", rounding="once")
    one, every = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "all")
    assert one["lm_head.weight"].shape == (113, 48)
    for name, tensor in every.items():
        assert torch.allclose(one[name], tensor, atol=1e-5), name
    assert (tmp_path / "sum" / "tokenizer.model").read_bytes() == (grown / "tokenizer.model").read_bytes()
    assert sorted(item.tensor for item in result.errors if item.norm is None) == [
        "lm_head.weight",
        "model.embed_tokens.weight",
    ]


def test_a_tensor_that_two_replace_is_taken_if_it_is_equal(tmp_path: Path) -> None:
    one = make_adapter(tmp_path / "one", seed=4, modules_to_save=EMBEDDINGS)
    two = make_adapter(tmp_path / "two", seed=5, modules_to_save=EMBEDDINGS)
    with pytest.raises(
        UnsupportedAdapter, match=r"Adapters one and two both replace '.+' whole, by different tensors"
    ):
        combined([one, two], tmp_path / "refused", [1.0, 1.0])
    state = state_of(two)
    state |= {name: tensor for name, tensor in state_of(one).items() if "lora" not in name}
    save_file(state, two / "adapter_model.safetensors")
    combined([one, two], tmp_path / "sum", [1.0, 1.0])
    found = state_of(tmp_path / "sum")
    for name in ("model.embed_tokens", "lm_head"):
        assert torch.equal(
            found[f"base_model.model.{name}.weight"], state_of(one)[f"base_model.model.{name}.weight"]
        )


def test_adapters_that_almost_cancel_out_are_right(tmp_path: Path, three: list[Path]) -> None:
    copy = Path(shutil.copytree(three[0], tmp_path / "copy"))
    state = {name: tensor + 1e-6 * (".lora_B." in name) for name, tensor in state_of(copy).items()}
    save_file(state, copy / "adapter_model.safetensors")
    for method in ("concatenate", "linear"):
        combined([three[0], copy], tmp_path / method, [1.0, -1.0], method=method)
        config = json.loads((tmp_path / method / "adapter_config.json").read_text())
        assert config["r"] == 16
