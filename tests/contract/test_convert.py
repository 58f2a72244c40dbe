"""Conversions against the original forward pass: transformers on our output computes what Meta's model computes."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from services.checkpoints.write_hooks import WriteHooks
from services.convert import ConvertOptions, convert
from services.errors import (
    JobCanceled,
    NonFiniteTensor,
)
from services.models.store import ModelStore
from tests.contract.original_models import saved
from tests.reference.make_original import SMALL, WIDE, Sizes, State, random_state, save_original, split_ranks
from tests.reference.original_llama import original_logits

TOKENS = [1, 57, 100, 3, 99, 12, 12, 76, 31, 5, 64]


def converted(source: Path, target: Path, options: ConvertOptions | None = None) -> Path:
    target.mkdir()
    convert(source, target, options)
    return target


def logits_of(folder: Path) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("ranks", "sizes", "dtype"),
    [
        (1, SMALL, torch.float16),
        (2, SMALL, torch.bfloat16),
        (4, SMALL, torch.float16),
        (4, SMALL, torch.float32),
        (8, WIDE, torch.float16),
    ],
)
def test_the_converted_model_computes_the_original_logits(
    tmp_path: Path, ranks: int, sizes: Sizes, dtype: torch.dtype
) -> None:
    state = random_state(sizes, dtype)
    source = saved(tmp_path / "source", ranks=ranks, sizes=sizes, state=state)

    found = logits_of(converted(source, tmp_path / "target"))

    expected = original_logits(state, sizes.params, TOKENS)
    assert found.shape == expected.shape == (11, 101)
    assert relative_difference(found, expected) < 1e-5


def test_a_model_without_grouped_heads_computes_the_original_logits(tmp_path: Path) -> None:
    sizes = Sizes(n_kv_heads=8)
    state = random_state(sizes)
    params = {name: value for name, value in sizes.params.items() if name != "n_kv_heads"}
    save_original(tmp_path / "source", split_ranks(state, 2), params)

    found = logits_of(converted(tmp_path / "source", tmp_path / "target"))

    assert relative_difference(found, original_logits(state, params, TOKENS)) < 1e-5


def test_a_rotary_base_and_an_epsilon_of_its_own_are_kept(tmp_path: Path) -> None:
    state = random_state(SMALL)
    params = {**SMALL.params, "rope_theta": 1000000.0, "norm_eps": 1e-2}
    save_original(tmp_path / "source", split_ranks(state, 2), params)

    found = logits_of(converted(tmp_path / "source", tmp_path / "target"))

    assert relative_difference(found, original_logits(state, params, TOKENS)) < 1e-5
    assert relative_difference(found, original_logits(state, SMALL.params, TOKENS)) > 1e-3


@pytest.mark.parametrize("name", ["q_proj", "k_proj"])
def test_without_the_rotary_permutation_the_logits_differ(tmp_path: Path, name: str) -> None:
    """The comparison above can fail: rows in Meta's order are another model."""
    state = random_state(SMALL)
    target = converted(saved(tmp_path / "source", state=state), tmp_path / "target")
    model = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32)
    wanted = {"q_proj": "attention.wq", "k_proj": "attention.wk"}[name]

    with torch.no_grad():
        for layer in range(3):
            projection = getattr(model.model.layers[layer].self_attn, name)
            projection.weight.copy_(state[f"layers.{layer}.{wanted}.weight"])
        found = model(torch.tensor([TOKENS])).logits[0]

    assert relative_difference(found, original_logits(state, SMALL.params, TOKENS)) > 1e-2


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, "mixed"])
def test_every_tensor_keeps_its_dtype(tmp_path: Path, kind: Any) -> None:
    state = random_state(SMALL, torch.float16 if kind == "mixed" else kind)
    if kind == "mixed":
        state = {name: t.float() if "norm" in name else t for name, t in state.items()}
    target = converted(saved(tmp_path / "source", ranks=2, state=state), tmp_path / "target")

    tensors = load_file(target / "model.safetensors")

    assert len(tensors) == 3 * 9 + 3
    assert tensors["model.norm.weight"].dtype == state["norm.weight"].dtype
    assert torch.equal(tensors["model.norm.weight"], state["norm.weight"])
    assert torch.equal(tensors["model.embed_tokens.weight"], state["tok_embeddings.weight"])
    assert torch.equal(tensors["lm_head.weight"], state["output.weight"])
    assert torch.equal(
        tensors["model.layers.2.mlp.down_proj.weight"], state["layers.2.feed_forward.w2.weight"]
    )
    names = {
        torch.float16: "float16",
        torch.bfloat16: "bfloat16",
        torch.float32: "float32",
        "mixed": "float16",
    }
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == names[kind]


def test_a_requested_dtype_is_rounded_once(tmp_path: Path) -> None:
    state = random_state(SMALL, torch.float32)
    source = saved(tmp_path / "source", ranks=4, state=state)

    tensors = load_file(converted(source, tmp_path / "target", ConvertOptions("BF16")) / "model.safetensors")

    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert torch.equal(tensors["lm_head.weight"], state["output.weight"].bfloat16())


def test_a_dtype_that_cannot_hold_a_value_is_refused_by_name(tmp_path: Path) -> None:
    state = random_state(SMALL, torch.float32)
    state["layers.1.attention.wv.weight"][3, 5] = 7e4

    with pytest.raises(
        NonFiniteTensor, match=r"model\.layers\.1\.self_attn\.v_proj\.weight.* holds 1 values"
    ):
        converted(saved(tmp_path / "source", state=state), tmp_path / "target", ConvertOptions("F16"))


def test_shards_with_an_index_load_and_equal_the_single_file(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", ranks=2)
    single = converted(source, tmp_path / "single")
    sharded = converted(source, tmp_path / "sharded", ConvertOptions(max_shard_bytes=40_000))

    shards = sorted(sharded.glob("model-*.safetensors"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    whole = load_file(single / "model.safetensors")
    joined: State = {}
    for shard in shards:
        joined |= load_file(shard)
        assert {n for n, file in index["weight_map"].items() if file == shard.name} == set(load_file(shard))

    assert len(shards) > 5
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in whole.values())
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)
    assert torch.equal(logits_of(sharded), logits_of(single))


def test_views_of_one_shared_storage_are_read_by_their_strides(tmp_path: Path) -> None:
    """As Meta's files have them: the columns of a rank are a view, and torch saves what lies under it."""
    state = random_state(SMALL)
    rows = state["layers.0.attention.wo.weight"]
    parts = split_ranks(state, 2)
    for rank, part in enumerate(parts):
        part["layers.0.attention.wo.weight"] = rows.chunk(2, dim=1)[rank]
        assert not part["layers.0.attention.wo.weight"].is_contiguous()
    save_original(tmp_path / "source", parts, SMALL.params)

    tensors = load_file(converted(tmp_path / "source", tmp_path / "target") / "model.safetensors")

    assert torch.equal(tensors["model.layers.0.self_attn.o_proj.weight"], rows)


def test_the_tokenizer_is_copied_byte_for_byte(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", ranks=2)
    target = converted(source, tmp_path / "target")
    assert (target / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()


def test_a_size_folder_with_the_tokenizer_one_level_up_converts_as_the_flat_one(tmp_path: Path) -> None:
    flat = saved(tmp_path / "flat", ranks=2)
    nested = tmp_path / "nested"
    saved(nested / "7B", ranks=2, tokenizer=nested)
    assert not (nested / "7B" / "tokenizer.model").exists()

    one = converted(flat, tmp_path / "of-flat")
    other = converted(nested, tmp_path / "of-nested")

    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_params_nested_under_model_are_read(tmp_path: Path) -> None:
    source = saved(tmp_path / "source")
    (source / "params.json").write_text(json.dumps({"model": SMALL.params, "quantization_args": None}))
    target = converted(source, tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 4)
    assert config["vocab_size"] == 101, "params.json says -1: the rows count"


def test_the_configuration_says_what_the_tensors_are(tmp_path: Path) -> None:
    target = converted(saved(tmp_path / "source", ranks=4), tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    expected = {
        "model_type": "llama", "hidden_size": 48, "intermediate_size": 140, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6, "vocab_size": 101, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected


def test_files_are_readable_by_all_whatever_the_umask(tmp_path: Path) -> None:
    source = saved(tmp_path / "source")
    store = ModelStore(tmp_path / "volume")
    before = os.umask(0o077)
    try:
        with store.publishing("model", execution="e1") as staging:
            convert(source, staging, ConvertOptions(max_shard_bytes=40_000))
    finally:
        os.umask(before)

    files = list((tmp_path / "volume" / "model").iterdir())

    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
    assert stat.S_IMODE((tmp_path / "volume" / "model").stat().st_mode) == 0o755


# ---- progress ----


def test_a_cancel_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", ranks=2)
    store = ModelStore(tmp_path / "volume")
    written: list[int] = []

    def check_canceled() -> None:
        if len(written) > 6:
            raise JobCanceled("canceled")

    watch = WriteHooks(report=lambda progress: written.append(progress.done), check_canceled=check_canceled)
    with pytest.raises(JobCanceled), store.publishing("model", execution="e1") as staging:
        convert(source, staging, None, watch)

    assert 0 < written[-1] < 200_000, "it had begun and was not through"
    assert store.names() == []
    assert list((store.root / ".staging").iterdir()) == []


def test_progress_runs_from_nothing_to_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = saved(tmp_path / "source", ranks=2)
    (tmp_path / "target").mkdir()

    checkpoint, written = convert(
        source, tmp_path / "target", None, WriteHooks(report=lambda p: seen.append((p.done, p.total)))
    )

    assert seen[0] == (0, written.size_bytes)
    assert seen[-1] == (written.size_bytes, written.size_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert checkpoint.dropped == ("rope.freqs",)
