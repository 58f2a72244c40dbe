"""Merges against PEFT, bit for bit; against float64; and the check that a finished merge must pass."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from services.adapters.lora_tensors import LoraPair
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.convert import ConvertOptions, convert
from services.errors import NonFiniteTensor, VerificationFailed
from services.files.safetensors_header import read_safetensors_header
from services.merge import Merged, MergeOptions, merge
from services.merge.delta import Change, changed_blocks
from services.verify import verify_merge
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

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
EMBEDDINGS = ["embed_tokens", "lm_head"]


def merged(
    base: Path, adapters: Sequence[Path], target: Path, *, scales: Sequence[float] = (), **options: Any
) -> Merged:
    target.mkdir()
    scales = scales or [1.0] * len(adapters)
    chosen = [(path.name, path, scale) for path, scale in zip(adapters, scales, strict=True)]
    return merge(base, chosen, target, options=MergeOptions(**options))


def tensors_of(folder: Path) -> State:
    state: State = {}
    for path in folder.glob("*.safetensors"):
        state |= load_file(path)
    return state


def assert_same_bits(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), (
            f"{name}: {int((found[name] != tensor).sum())} elements differ"
        )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of different ranks on different modules."""
    folder = tmp_path_factory.mktemp("adapters")
    first = make_adapter(folder / "first", seed=1, r=8, lora_alpha=20)
    second = make_adapter(
        folder / "second", seed=2, r=5, lora_alpha=7, target_modules=["q_proj", "v_proj", "down_proj"]
    )
    return [first, second]


# ---- equal to PEFT ------------------------------------------------------------------------------------


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


# ---- rounding -----------------------------------------------------------------------------------------


def in_float64(base: State, folders: Sequence[Path]) -> State:
    """The merge without any rounding; every adapter here has alpha / r as its scale."""
    state = {name: tensor.double() for name, tensor in base.items()}
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        halves = load_file(folder / "adapter_model.safetensors")
        for key, a in halves.items():
            if ".lora_A." in key:
                b = halves[key.replace("lora_A", "lora_B")]
                name = key.removeprefix("base_model.model.").replace(".lora_A", "")
                state[name] += b.double() @ a.double() * (config["lora_alpha"] / config["r"])
    return state


@pytest.mark.parametrize("code", ["F16", "BF16"])
def test_rounding_once_is_nearer_to_float64_than_rounding_for_each_adapter(
    tmp_path: Path, adapters: list[Path], code: str
) -> None:
    base = save_model(random_model(DTYPES[code]), tmp_path / "base")
    exact = in_float64(random_model(DTYPES[code]).state_dict(), adapters)

    errors, as_exact = {}, {}
    for rounding in ("once", "per_adapter"):
        merged(base, adapters, tmp_path / rounding, rounding=rounding)
        found = tensors_of(tmp_path / rounding)
        changed = [name for name in exact if name.endswith("q_proj.weight")]
        errors[rounding] = sum(float((found[name] - exact[name]).abs().sum()) for name in changed)
        equal = sum(int((found[name] == exact[name].to(DTYPES[code])).sum()) for name in changed)
        as_exact[rounding] = equal / sum(exact[name].numel() for name in changed)

    assert 0 < errors["once"] < 0.95 * errors["per_adapter"]
    assert as_exact["once"] > 0.999
    assert as_exact["per_adapter"] < 0.95


def test_rounding_once_into_another_dtype_rounds_from_the_unrounded_sum(
    tmp_path: Path, adapters: list[Path]
) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    exact = in_float64(random_model(torch.float16).state_dict(), adapters)

    merged(base, adapters, tmp_path / "target", rounding="once", dtype="F32")

    found = tensors_of(tmp_path / "target")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(float((found[name] - exact[name]).abs().max()) < 1e-5 for name in exact)


# ---- refused while computing --------------------------------------------------------------------------


def spoiled(path: Path, target: Path, key: str, value: float) -> Path:
    shutil.copytree(path, target)
    state = load_file(target / "adapter_model.safetensors")
    state[key][1, 2] = value
    save_file(state, target / "adapter_model.safetensors")
    return target


def test_an_adapter_with_a_value_that_is_no_number_is_refused_by_name(
    tmp_path: Path, adapters: list[Path]
) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    bad = spoiled(adapters[0], tmp_path / "bad", key, float("nan"))
    with pytest.raises(NonFiniteTensor, match=r"bad: .*layers\.1\.mlp\.up_proj\.lora_B\.weight"):
        merged(base, [bad], tmp_path / "target")


def test_a_sum_that_the_dtype_cannot_hold_is_refused_by_name(tmp_path: Path, adapters: list[Path]) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    key = "base_model.model.model.layers.2.self_attn.k_proj.lora_A.weight"
    bad = spoiled(adapters[0], tmp_path / "bad", key, 1e7)
    with pytest.raises(
        NonFiniteTensor, match=r"'model\.layers\.2\.self_attn\.k_proj\.weight' holds \d+ values"
    ):
        merged(base, [bad], tmp_path / "target")


# ---- verification and accounts ------------------------------------------------------------------------


@pytest.mark.parametrize("code", DTYPES)
@pytest.mark.parametrize("rounding", ["per_adapter", "once"])
def test_a_good_merge_passes_its_check(
    tmp_path: Path, adapters: list[Path], code: str, rounding: Any
) -> None:
    base = save_model(random_model(DTYPES[code]), tmp_path / "base")
    extra = make_adapter(tmp_path / "extra", seed=8, target_modules=["embed_tokens", "lm_head", "q_proj"])
    options = MergeOptions(rounding=rounding)

    report = verify_merge(
        merged(base, [*adapters, extra], tmp_path / "target", rounding=rounding), options, WriteHooks()
    )

    assert report.passed is True
    assert report.tensors == report.digests_equal == 30
    assert report.rows_recomputed == 30 * 16
    assert report.vocabulary_size == report.tokenizer_size == 101
    assert report.largest_difference > 0


@pytest.mark.parametrize("code", DTYPES)
def test_a_merge_that_takes_the_base_away_again_passes_its_check(
    tmp_path: Path, adapters: list[Path], code: str
) -> None:
    """The second change cancels the first: what is left is small, and the roundings on the way are not."""
    base = save_model(random_model(DTYPES[code]), tmp_path / "base")
    again = Path(shutil.copytree(adapters[0], tmp_path / "again"))
    chosen = [adapters[0], again]

    report = verify_merge(
        merged(base, chosen, tmp_path / "target", scales=[50.0, -50.0]), MergeOptions(), WriteHooks()
    )

    assert report.passed is True


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_merge_into_another_dtype_passes_its_check(
    tmp_path: Path, adapters: list[Path], dtype: str
) -> None:
    base = save_model(random_model(torch.bfloat16), tmp_path / "base")
    result = merged(base, adapters, tmp_path / "target", dtype=dtype)
    assert verify_merge(result, MergeOptions(dtype=dtype), WriteHooks()).passed is True
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "target").values()} == {DTYPES[dtype]}


def test_a_flipped_bit_on_the_disk_fails_the_check_and_is_named(tmp_path: Path, adapters: list[Path]) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    result = merged(base, adapters, tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    place = read_safetensors_header(path)["model.layers.1.self_attn.o_proj.weight"].offset
    data = bytearray(path.read_bytes())
    data[place + 100] ^= 1
    path.write_bytes(data)

    with pytest.raises(VerificationFailed, match=r"'model\.layers\.1\.self_attn\.o_proj\.weight'.* SHA-256"):
        verify_merge(result, MergeOptions(), WriteHooks())


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("model.layers.0.mlp.up_proj.weight", 1.01),
        ("model.layers.2.self_attn.k_proj.weight", 0.0),
        ("model.layers.1.mlp.down_proj.weight", -1.0),
    ],
)
def test_a_wrong_change_fails_the_check_although_its_digest_is_right(
    tmp_path: Path, adapters: list[Path], name: str, factor: float
) -> None:
    base_state = random_model(torch.float16).state_dict()
    base = save_model(random_model(torch.float16), tmp_path / "base")
    result = merged(base, adapters, tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    wrong = load_file(path)
    whole_change = in_float64(base_state, adapters)[name] - base_state[name].double()
    wrong[name] = (base_state[name].double() + factor * whole_change).half()
    save_file(wrong, path)
    digests = {
        key: hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
        for key, tensor in wrong.items()
    }
    lying = replace(result, written=replace(result.written, digests=digests))

    with pytest.raises(VerificationFailed, match=rf"'{name}' differs from"):
        verify_merge(lying, MergeOptions(), WriteHooks())


def test_swapped_rows_of_the_embeddings_fail_the_check(tmp_path: Path) -> None:
    """A tensor that no adapter changes is compared as well."""
    base = save_model(random_model(torch.float16), tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", seed=9, target_modules=["q_proj"])
    result = merged(base, [adapter], tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    wrong = load_file(path)
    wrong["model.embed_tokens.weight"] = wrong["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(wrong, path)
    digests = {
        key: hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
        for key, tensor in wrong.items()
    }

    with pytest.raises(VerificationFailed, match=r"'model\.embed_tokens\.weight' differs"):
        verify_merge(
            replace(result, written=replace(result.written, digests=digests)), MergeOptions(), WriteHooks()
        )


def test_every_tensor_of_every_adapter_is_accounted_for(tmp_path: Path, adapters: list[Path]) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    saved = make_adapter(tmp_path / "saved", seed=10, modules_to_save=EMBEDDINGS, target_modules=["up_proj"])

    result = merged(base, [*adapters, saved], tmp_path / "target", scales=[1.0, 0.5, 1.0])

    expected = [
        {"adapter": "first", "scale": 1.0, "tensors": 42, "merged": 21, "replaced": 0},
        {"adapter": "second", "scale": 0.5, "tensors": 18, "merged": 9, "replaced": 0},
        {"adapter": "saved", "scale": 1.0, "tensors": 8, "merged": 3, "replaced": 2},
    ]
    for account, figures in zip(result.accounts, expected, strict=True):
        assert account.model_dump(include=set(figures)) == figures
