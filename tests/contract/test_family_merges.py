"""Merges of every family: the tensors are PEFT's, bit for bit, and a tied head is untied where an adapter needs it."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from services.architectures.families import FAMILIES
from services.checkpoints.write_hooks import WriteHooks
from services.errors import (
    AdapterMismatch,
    ConfigMismatch,
    GraftwerkError,
    IncompleteCheckpoint,
    UnknownAdapterKey,
    UnsupportedAdapter,
    VocabularyMismatch,
)
from services.merge import Merged, MergeOptions, merge
from services.verify import verify_merge
from tests.reference.families import VOCABULARY, save_tiny, save_tiny_adapter

State = dict[str, torch.Tensor]

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

DENSE = ("gpt2", "gpt_bigcode", "gpt_neox", "opt", "phi", "cohere2", "stablelm", "glm4", "starcoder2")
"""Dense types whose layers differ: transposed, fused, with biases, one norm for two, sandwiched."""


def load_state(folder: Path) -> State:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def merge_here(base: Path, adapters: Sequence[Path], target: Path, **options: Any) -> Merged:
    target.mkdir()
    named = [(folder.name, folder, 1.0) for folder in adapters]
    return merge(base, named, target, options=MergeOptions(**options))


def merged_by_peft(model: PreTrainedModel, adapters: Sequence[Path], folder: Path) -> State:
    """The files of PEFT's merge, saved by transformers: under the names of the base's own files."""
    model = copy.deepcopy(model)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.save_pretrained(folder)
    return load_state(folder)


def differences(found: State, expected: State) -> list[str]:
    assert set(found) == set(expected)
    return [name for name in expected if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_two_adapters_give_pefts_bits(model_type: str, dtype: str, tmp_path: Path) -> None:
    """One on all linear layers, vision tower included, then one on norms and the fused or biased projections."""
    model = save_tiny(model_type, tmp_path / "base", dtype=DTYPES[dtype])
    fused = "qkv_proj" if model_type == "phi3" else "v_proj"
    last_norm = "language_model.norm" if model_type == "gemma3" else "model.norm"
    first = save_tiny_adapter(tmp_path / "first", model)
    second = save_tiny_adapter(
        tmp_path / "second",
        model,
        seed=2,
        target_modules=[fused, "o_proj"],
        bias="all",
        modules_to_save=[last_norm],
        use_rslora=True,
    )

    merged = merge_here(tmp_path / "base", [first, second], tmp_path / "merged")

    report = verify_merge(merged, MergeOptions(), WriteHooks())
    assert report.passed
    assert report.logits is not None
    expected = merged_by_peft(model, [first, second], tmp_path / "peft")
    found = load_state(tmp_path / "merged")
    assert differences(found, expected) == []
    assert differences(found, load_state(tmp_path / "base")) != []
    assert [account.tensors for account in merged.accounts] == [
        len(load_file(adapter / "adapter_model.safetensors")) for adapter in (first, second)
    ]


@pytest.mark.parametrize("model_type", DENSE)
def test_dense_types_give_pefts_bits(model_type: str, tmp_path: Path) -> None:
    """GPT-2's weights are transposed, GPT-NeoX's queries, keys and values fused."""
    model = save_tiny(model_type, tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "adapter", model, bias="all")

    merged = merge_here(tmp_path / "base", [adapter], tmp_path / "merged")

    assert (
        differences(load_state(tmp_path / "merged"), merged_by_peft(model, [adapter], tmp_path / "peft"))
        == []
    )
    assert verify_merge(merged, MergeOptions(), WriteHooks()).passed


@pytest.mark.parametrize("model_type", FAMILIES)
def test_shards_are_merged_and_written_as_one_file_is(model_type: str, tmp_path: Path) -> None:
    model = save_tiny(model_type, tmp_path / "base")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    adapter = save_tiny_adapter(tmp_path / "adapter", model)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3

    merge_here(tmp_path / "base", [adapter], tmp_path / "one")
    merge_here(tmp_path / "shards", [adapter], tmp_path / "many", max_shard_bytes=25_000)

    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert differences(load_state(tmp_path / "many"), load_state(tmp_path / "one")) == []


@pytest.mark.parametrize("model_type", FAMILIES)
def test_transformers_loads_the_merged_model(model_type: str, tmp_path: Path) -> None:
    model = save_tiny(model_type, tmp_path / "base", dtype=torch.float32)
    adapter = save_tiny_adapter(tmp_path / "adapter", model)
    merge_here(tmp_path / "base", [adapter], tmp_path / "merged")

    expected = logits(PeftModel.from_pretrained(copy.deepcopy(model), adapter))
    torch.testing.assert_close(logits(reloaded(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)


def reloaded(folder: Path) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()  # type: ignore[no-any-return]


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(3, 43).view(2, 20) * 6  # longer than the windows, over the whole vocabulary
    assert int(ids.max()) < VOCABULARY
    with torch.no_grad():
        return model(ids).logits  # type: ignore[no-any-return]


TIED: dict[str, dict[str, Any]] = {
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "both saved, kept tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "pair on the head": {"target_modules": ["q_proj", "lm_head"]},
    "pair on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "pairs on both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "trained tokens": {"trainable_token_indices": [3, 48]},
    "trained tokens of the head": {"trainable_token_indices": {"lm_head": [3, 48]}},
    "trained tokens of both": {"trainable_token_indices": {"embed_tokens": [3, 48], "lm_head": [24, 36]}},
    "DoRA on the head": {"target_modules": ["lm_head"], "use_dora": True},
}
KEPT_TIED = ("both saved, kept tied", "trained tokens")


@pytest.mark.parametrize("case", TIED)
@pytest.mark.parametrize("model_type", ["qwen3", "gemma3"])
def test_a_tied_head_is_what_the_adapter_was_trained_with(model_type: str, case: str, tmp_path: Path) -> None:
    """The logits are those of PEFT with the adapter unmerged: its merge adds pairs to both tied tensors."""
    model = save_tiny(model_type, tmp_path / "base", tied=True, dtype=torch.float32)
    adapter = save_tiny_adapter(tmp_path / "adapter", model, **{"target_modules": ["q_proj"], **TIED[case]})

    merge_here(tmp_path / "base", [adapter], tmp_path / "merged")

    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is (case in KEPT_TIED)
    assert any("lm_head" in name for name in load_state(tmp_path / "merged")) is (case not in KEPT_TIED)
    expected = logits(PeftModel.from_pretrained(copy.deepcopy(model), adapter))
    torch.testing.assert_close(logits(reloaded(tmp_path / "merged")), expected, rtol=1e-4, atol=2e-4)
    assert not torch.allclose(expected, logits(model), atol=1e-2)


def refused(base: Path, adapter: Path, error: type[GraftwerkError], words: str) -> None:
    target = base.parent / "merged"
    with pytest.raises(error, match=words):
        merge_here(base, [adapter], target)
    assert list(target.iterdir()) == []


def test_an_adapter_of_another_family_is_refused(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "adapter", save_tiny("phi3", tmp_path / "phi3"))

    refused(
        tmp_path / "base",
        adapter,
        UnknownAdapterKey,
        r"adapter changes 'model\.layers\.0\.mlp\.gate_up_proj.*Qwen3ForCausalLM",
    )


def test_an_adapter_that_names_another_class_is_refused_though_all_shapes_fit(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path / "base")
    mistral = save_tiny("mistral", tmp_path / "mistral")
    adapter = save_tiny_adapter(tmp_path / "adapter", mistral, task_type=None)

    refused(
        tmp_path / "base",
        adapter,
        AdapterMismatch,
        "trained on a MistralForCausalLM; the base base is a Qwen3ForCausalLM",
    )


def test_tensors_outside_the_table_are_compared_with_transformers_class(tmp_path: Path) -> None:
    model = save_tiny("gemma3", tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "adapter", model)
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    del tensors["vision_tower.post_layernorm.bias"]
    save_file(tensors, path)

    refused(
        tmp_path / "base",
        adapter,
        IncompleteCheckpoint,
        r"1 of 52 .*'model\.vision_tower\.post_layernorm\.bias'",
    )


def test_a_configuration_that_transformers_does_not_accept_is_refused(tmp_path: Path) -> None:
    model = save_tiny("phi3", tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "adapter", model)
    path = tmp_path / "base" / "config.json"
    values = json.loads(path.read_text())
    values["rope_parameters"]["short_factor"].append(1.0)
    path.write_text(json.dumps(values))

    refused(tmp_path / "base", adapter, ConfigMismatch, "short_factor.*length 6, got 7")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lm_head"], r"holds 'lm_head\.weight' and no 'model\.embed_tokens\.weight'"),
        (
            ["lm_head", "model.embed_tokens"],
            r"holds a 'lm_head\.weight' that differs from its 'model\.embed_tokens\.weight'",
        ),
    ],
)
def test_a_saved_head_of_a_tied_base_that_is_not_a_trained_copy_is_refused(
    names: list[str], words: str, tmp_path: Path
) -> None:
    model = save_tiny("qwen2", tmp_path / "base", tied=True)
    adapter = save_tiny_adapter(tmp_path / "adapter", model, target_modules=["q_proj"])
    path = adapter / "adapter_model.safetensors"
    whole = {f"base_model.model.{name}.weight": torch.randn(VOCABULARY, 48) for name in names}
    save_file(load_file(path) | whole, path)

    refused(tmp_path / "base", adapter, UnsupportedAdapter, words)


def test_a_vocabulary_that_outgrows_the_heads_bias_is_refused(tmp_path: Path) -> None:
    model = save_tiny("phi", tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "adapter", model, target_modules=["q_proj"])
    path = adapter / "adapter_model.safetensors"
    names = ("model.embed_tokens", "lm_head")
    save_file(
        load_file(path) | {f"base_model.model.{name}.weight": torch.zeros(310, 48) for name in names}, path
    )

    refused(
        tmp_path / "base",
        adapter,
        VocabularyMismatch,
        r"from 300 to 310 rows; the base has a 'lm_head\.bias'",
    )


def test_an_earlier_change_of_tied_embeddings_reaches_the_head_that_a_later_adapter_unties(
    tmp_path: Path,
) -> None:
    model = save_tiny("qwen2", tmp_path / "base", tied=True)
    tokens = save_tiny_adapter(
        tmp_path / "tokens", model, target_modules=["q_proj"], trainable_token_indices=[3, 48]
    )
    head = save_tiny_adapter(tmp_path / "head", model, target_modules=["v_proj"], modules_to_save=["lm_head"])
    pair = save_tiny_adapter(tmp_path / "pair", model, target_modules=["lm_head"])

    merged = merge_here(tmp_path / "base", [tokens, pair], tmp_path / "merged")

    found = load_state(tmp_path / "merged")
    once = PeftModel.from_pretrained(copy.deepcopy(model), tokens).merge_and_unload().state_dict()
    untied = save_tiny("qwen2", tmp_path / "untied", tied=False)
    untied.load_state_dict(once)
    expected = merged_by_peft(untied, [pair], tmp_path / "peft")
    assert differences(found, expected) == []
    assert verify_merge(merged, MergeOptions(), WriteHooks()).passed
    merge_here(tmp_path / "base", [tokens, head], tmp_path / "saved")
    assert torch.equal(
        load_state(tmp_path / "saved")["lm_head.weight"],
        load_file(head / "adapter_model.safetensors")["base_model.model.lm_head.weight"].half(),
    )


def test_names_without_the_models_prefix_are_kept(tmp_path: Path) -> None:
    """GPT-2 was published from the model without its head, with masks that are computed today."""
    model = save_tiny("gpt2", tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 128, 128, dtype=torch.uint8)}, path)
    adapter = save_tiny_adapter(tmp_path / "adapter", model)

    merge_here(tmp_path / "base", [adapter], tmp_path / "merged")

    expected = merged_by_peft(model, [adapter], tmp_path / "peft")
    assert (
        differences(
            load_state(tmp_path / "merged"), {n.removeprefix("transformer."): t for n, t in expected.items()}
        )
        == []
    )


def test_a_tuner_on_a_transposed_weight_is_refused(tmp_path: Path) -> None:
    model = save_tiny("gpt2", tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "adapter", model, use_dora=True, target_modules=["c_attn"])

    refused(
        tmp_path / "base",
        adapter,
        UnsupportedAdapter,
        r"h\.0\.attn\.c_attn\.weight', a Conv1D whose weight is transposed",
    )


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_a_head_beside_names_without_a_prefix_is_loaded(prefix: str, tmp_path: Path) -> None:
    model = save_tiny("gpt2", tmp_path / "base", dtype=torch.float32)
    path = tmp_path / "base" / "model.safetensors"
    save_file(
        {prefix + name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}, path
    )
    adapter = save_tiny_adapter(
        tmp_path / "adapter", model, target_modules=["c_fc"], modules_to_save=["lm_head"]
    )

    merge_here(tmp_path / "base", [adapter], tmp_path / "merged")

    expected = logits(PeftModel.from_pretrained(copy.deepcopy(model), adapter))
    torch.testing.assert_close(logits(reloaded(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)
