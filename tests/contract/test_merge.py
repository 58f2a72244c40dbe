"""Merges against PEFT, bit for bit."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from services.adapters.lora_tensors import LoraPair
from services.checkpoints.tensor_reader import TensorReader
from services.convert import ConvertOptions, convert
from services.files.safetensors_header import read_safetensors_header
from services.merge.delta import Change, changed_blocks
from tests.contract.merge_models import DTYPES, EMBEDDINGS, adapters, assert_same_bits, merged, tensors_of
from tests.miniature import MINIATURE, unpack_adapters
from tests.reference.make_original import SMALL, random_state, save_original, split_ranks
from tests.reference.peft_merge import (
    PROJECTIONS,
    State,
    make_adapter,
    peft_merged,
    random_model,
    rewrite_weights,
    save_model,
    write_tokenizer,
)

__all__ = ["adapters"]  # fixture


@pytest.mark.parametrize("code", DTYPES)
def test_two_adapters_of_different_ranks_give_pefts_bits(
    tmp_path: Path, adapters: list[Path], code: str
) -> None:
    base = save_model(random_model(DTYPES[code]), tmp_path / "base")

    merged(base, adapters, tmp_path / "target")

    expected = peft_merged(random_model(DTYPES[code]), adapters)
    assert_same_bits(tensors_of(tmp_path / "target"), expected)
    unmerged = random_model(DTYPES[code]).state_dict()
    assert sum(not torch.equal(expected[name], unmerged[name]) for name in expected) == 3 * len(PROJECTIONS)


@pytest.fixture(scope="module")
def expected_half(adapters: list[Path]) -> State:
    return peft_merged(random_model(torch.float16), adapters)


@pytest.mark.parametrize("adapter_ending", ["safetensors", "bin"])
@pytest.mark.parametrize("base_ending", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 4])
def test_how_base_and_adapters_are_stored_does_not_matter(
    tmp_path: Path,
    adapters: list[Path],
    expected_half: State,
    shards: int,
    base_ending: str,
    adapter_ending: str,
) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base", ending=base_ending, shards=shards)
    copies = [
        rewrite_weights(Path(shutil.copytree(path, tmp_path / path.name)), ending=adapter_ending)
        for path in adapters
    ]

    merged(base, copies, tmp_path / "target", max_shard_bytes=30_000 * shards)

    assert len(list((tmp_path / "target").glob("*.safetensors"))) > 1
    assert_same_bits(tensors_of(tmp_path / "target"), expected_half)
    LlamaForCausalLM.from_pretrained(tmp_path / "target", dtype=torch.float16)


def test_keys_with_the_adapters_name_inside_are_understood(
    tmp_path: Path, adapters: list[Path], expected_half: State
) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    copies = [
        rewrite_weights(Path(shutil.copytree(path, tmp_path / path.name)), inner_name="default")
        for path in adapters
    ]
    merged(base, copies, tmp_path / "target")
    assert_same_bits(tensors_of(tmp_path / "target"), expected_half)


OPTIONS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True, "lora_alpha": 9},
    "rank and alpha patterns": {
        "rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\.up_proj": 3},
        "alpha_pattern": {"v_proj": 40, "self_attn.q_proj": 5},
    },
    "patterns with rslora": {"rank_pattern": {"o_proj": 3}, "use_rslora": True},
    "attention of one layer": {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "v_proj"]},
    "saved modules": {"modules_to_save": EMBEDDINGS},
    "saved norm": {"modules_to_save": ["input_layernorm"]},
}


@pytest.mark.parametrize("code", ["F16", "BF16"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_option_that_changes_the_result_gives_pefts_bits(
    tmp_path: Path, adapters: list[Path], options: dict[str, Any], code: str
) -> None:
    base = save_model(random_model(DTYPES[code]), tmp_path / "base")
    adapter = make_adapter(tmp_path / "special", seed=3, **options)

    merged(base, [adapters[0], adapter], tmp_path / "target")

    expected = peft_merged(random_model(DTYPES[code]), [adapters[0], adapter])
    assert_same_bits(tensors_of(tmp_path / "target"), expected)


@pytest.mark.parametrize("code", ["F16", "F32"])
def test_a_scale_gives_the_bits_of_pefts_scale(tmp_path: Path, adapters: list[Path], code: str) -> None:
    base = save_model(random_model(DTYPES[code]), tmp_path / "base")

    merged(base, adapters, tmp_path / "target", scales=[0.5, -1.5])

    expected = peft_merged(random_model(DTYPES[code]), adapters, scales=[0.5, -1.5])
    assert_same_bits(tensors_of(tmp_path / "target"), expected)


def test_a_vocabulary_extended_twice_gives_pefts_bits(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    first = make_adapter(tmp_path / "first", seed=4, vocabulary=113, modules_to_save=EMBEDDINGS)
    second = make_adapter(tmp_path / "second", seed=5, vocabulary=114, modules_to_save=EMBEDDINGS, r=6)
    write_tokenizer(first, 113)
    write_tokenizer(second, 114)

    result = merged(base, [first, second], tmp_path / "target")

    found = tensors_of(tmp_path / "target")
    assert_same_bits(found, peft_merged(random_model(torch.float16), [first, second]))
    assert found["lm_head.weight"].shape == (114, 48)
    assert json.loads((tmp_path / "target" / "config.json").read_text())["vocab_size"] == 114
    assert (tmp_path / "target" / "tokenizer.model").read_bytes() == (second / "tokenizer.model").read_bytes()
    assert result.stack.vocabulary_rows == 114


def test_the_original_layout_merges_as_its_conversion_does(tmp_path: Path, adapters: list[Path]) -> None:
    source = save_original(tmp_path / "source", split_ranks(random_state(SMALL), 4), SMALL.params)
    (tmp_path / "converted").mkdir()
    convert(source, tmp_path / "converted")

    merged(source, adapters, tmp_path / "direct")
    merged(tmp_path / "converted", adapters, tmp_path / "by-way")

    direct = tensors_of(tmp_path / "direct")
    assert_same_bits(direct, tensors_of(tmp_path / "by-way"))
    model = LlamaForCausalLM.from_pretrained(tmp_path / "converted", dtype=torch.float16)
    assert_same_bits(direct, peft_merged(model, adapters))


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return MINIATURE / "llama", unpack_adapters(tmp_path_factory.mktemp("miniature"))


@pytest.mark.parametrize("code", DTYPES)
def test_the_miniature_merges_to_pefts_bits(
    tmp_path: Path, miniature: tuple[Path, list[Path]], code: str
) -> None:
    original, adapters = miniature
    base = tmp_path / "base"
    base.mkdir()
    convert(original, base, ConvertOptions(None if code == "F16" else code))

    merged(base, adapters, tmp_path / "target")

    model = LlamaForCausalLM.from_pretrained(base, dtype=DTYPES[code])
    assert_same_bits(tensors_of(tmp_path / "target"), peft_merged(model, adapters))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Number of threads: with two, other kernels compute small products."""
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("code", ["F16", "F32"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns"), [(4099, 701), (1024, 3072), (3072, 3072), (2049, 1024), (131, 40000)]
)
def test_a_tensor_of_several_blocks_gives_the_bits_of_one_product(
    tmp_path: Path, rows: int, columns: int, code: str, transposed: bool
) -> None:
    """The result does not depend on the blocks: a remainder of a few rows would be computed with other bits.

    1024 and 3072 rows of 3072 are k and q of Llama 3.2 3B; a vocabulary of 32001 rows leaves a remainder of one.
    """
    generator = torch.Generator().manual_seed(6)
    rank = 7
    a_shape, b_shape = ((rank, rows), (columns, rank)) if transposed else ((rank, columns), (rows, rank))
    a, b = (torch.randn(shape, generator=generator).half() for shape in (a_shape, b_shape))
    weight = torch.randn(rows, columns, generator=generator).to(DTYPES[code])
    save_file({"a": a, "b": b}, tmp_path / "pair.safetensors")
    headers = read_safetensors_header(tmp_path / "pair.safetensors")
    pair = LoraPair("module", headers["a"], headers["b"], rank, 0.3, transposed, rounded=transposed)

    with TensorReader() as reader:
        blocks = list(changed_blocks(reader, weight, [Change("x", 1.0, pair, None)], once=False))

    delta = b.float() @ a.float()
    delta = (delta.T * 0.3).to(weight.dtype) if transposed else delta * 0.3
    expected = weight.clone()
    expected += delta
    assert len(blocks) > 1
    assert min(len(block) for block in blocks) >= 64
    assert torch.equal(torch.cat(blocks), expected)
