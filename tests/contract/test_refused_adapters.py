"""Refusals of an adapter for its own files: configuration, keys and shapes."""

from typing import Any

import pytest

from services.errors import (
    GraftwerkError,
    IncompleteAdapter,
    ShapeMismatch,
    UnknownAdapterKey,
    UnreadableFile,
    UnsupportedAdapter,
)
from services.models.store import ModelStore
from services.preflight import preflight
from services.preflight.plan import PlannedWrite
from tests.contract.refused_requests import Q, assert_refused, merge_of, store
from tests.reference.tensor_files import embedding_shapes, pair_shapes, write_adapter

__all__ = ["store"]  # fixture


def test_an_adapter_without_tensors_is_refused_with_its_size(store: ModelStore) -> None:
    write_adapter(store.root / "empty", {})
    assert_refused(
        store, merge_of("empty"), IncompleteAdapter, "Adapter empty", "(10 bytes) holds no tensors"
    )


def test_an_adapter_without_its_config_is_refused(store: ModelStore) -> None:
    (store.root / "fits" / "adapter_config.json").unlink()
    assert_refused(store, merge_of("fits"), IncompleteAdapter, "Adapter fits has no adapter_config.json")


def test_an_adapter_without_weights_is_refused(store: ModelStore) -> None:
    (store.root / "fits" / "adapter_model.safetensors").unlink()
    assert_refused(
        store, merge_of("fits"), IncompleteAdapter, "adapter_model.safetensors or adapter_model.bin"
    )


@pytest.mark.parametrize(("half", "left"), [("lora_A", "lora_B"), ("lora_B", "lora_A")])
def test_half_a_pair_is_refused_by_the_modules_name(store: ModelStore, half: str, left: str) -> None:
    shapes = pair_shapes()
    del shapes[f"{Q}.{half}.weight"]
    write_adapter(store.root / "half", shapes)
    assert_refused(
        store, merge_of("half"), IncompleteAdapter,
        f"module 'model.layers.1.self_attn.q_proj' has {left}; needed are lora_A and lora_B",
    )  # fmt: skip


def test_a_declared_target_without_tensors_is_refused(store: ModelStore) -> None:
    write_adapter(store.root / "less", target_modules=["q_proj", "v_proj", "up_proj"])
    assert_refused(store, merge_of("less"), IncompleteAdapter, "target_modules has 'up_proj'")


def test_a_declared_saved_module_without_a_tensor_is_refused(store: ModelStore) -> None:
    write_adapter(store.root / "less", modules_to_save=["embed_tokens"])
    assert_refused(store, merge_of("less"), IncompleteAdapter, "modules_to_save has 'embed_tokens'")


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "model.layers.0.self_attn.q_proj.weight",
        "prompt_embeddings",
        "base_model.model.model.embed_tokens.base_layer.weight",
    ],
)
def test_a_key_that_is_not_understood_is_refused_by_name(store: ModelStore, key: str) -> None:
    write_adapter(store.root / "odd", {**pair_shapes(), key: (48, 48)})
    assert_refused(store, merge_of("odd"), UnknownAdapterKey, f"Adapter odd holds {key!r}")


@pytest.mark.parametrize(
    ("module", "shown"),
    [("layers.3.self_attn.q_proj", "(3 layers)"), ("layers.1.self_attn.qkv_proj", "does not have")],
)
def test_a_module_that_the_base_does_not_have_is_refused_by_name(
    store: ModelStore, module: str, shown: str
) -> None:
    at = f"base_model.model.model.{module}"
    write_adapter(
        store.root / "odd",
        {**pair_shapes(), f"{at}.lora_A.weight": (8, 48), f"{at}.lora_B.weight": (48, 8)},
    )
    assert_refused(
        store, merge_of("odd"), UnknownAdapterKey, f"changes 'model.{module}.weight'", "the base base", shown
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_replication", [[0, 2], [1, 3]]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("lora_bias", True),
        ("use_qalora", True),
        ("alora_invocation_tokens", [3, 4]),
        ("some_option_of_next_year", "on"),
    ],
)
def test_an_option_that_changes_the_result_is_refused_by_name_and_value(
    store: ModelStore, key: str, value: Any
) -> None:
    write_adapter(store.root / "special", **{key: value})
    assert_refused(store, merge_of("special"), UnsupportedAdapter, "Adapter special", f"{key} = {value!r}")


def test_unknown_options_that_are_null_pass(store: ModelStore) -> None:
    write_adapter(
        store.root / "old", enable_lora=None, merge_weights=False, fan_in_fan_out=False, some_list=[]
    )
    assert preflight(merge_of("old"), store, {}).writes == PlannedWrite(
        name="new", output_format="huggingface", tensors=30, vocabulary_size=101, tokenizer_of="base"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", None), ("r", 0), ("r", "8"), ("r", True), ("r", 8.5), ("r", float("nan")), ("r", -8),
        ("lora_alpha", None), ("lora_alpha", "16"), ("lora_alpha", float("inf")), ("lora_alpha", float("nan")),
        ("rank_pattern", {"q_proj": "4"}), ("rank_pattern", {"q_proj": 0}), ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj(": 8}), ("rank_pattern", {"((((((q|v)+)+)+)+)+)_proj": 8}), ("alpha_pattern", {"q_proj": None}),
        ("alpha_pattern", {"q_proj": float("inf")}), ("alpha_pattern", "q_proj"), ("modules_to_save", "embed_tokens"),
        ("modules_to_save", [7]), ("modules_to_save", {"lm_head": 1}),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_read_is_refused_by_name(store: ModelStore, key: str, value: Any) -> None:
    write_adapter(store.root / "odd", **{key: value})
    assert_refused(store, merge_of("odd"), GraftwerkError, "Adapter odd", key)


def test_a_config_that_is_no_json_is_refused(store: ModelStore) -> None:
    (store.root / "fits" / "adapter_config.json").write_text("{'r': 8}")
    assert_refused(store, merge_of("fits"), UnreadableFile, "adapter_config.json is not valid JSON")


def test_a_rank_that_is_not_the_tensors_is_refused_with_both(store: ModelStore) -> None:
    write_adapter(store.root / "odd", r=16)
    assert_refused(store, merge_of("odd"), ShapeMismatch, "says rank 16", "its A has 8 rows")


def test_halves_that_do_not_fit_each_other_are_refused_with_both_shapes(store: ModelStore) -> None:
    write_adapter(store.root / "odd", {**pair_shapes(), f"{Q}.lora_B.weight": (48, 4)})
    assert_refused(store, merge_of("odd"), ShapeMismatch, "A of shape [8, 48] and B of shape [48, 4]")


def test_embeddings_without_rows_are_refused_with_the_cause(store: ModelStore) -> None:
    write_adapter(
        store.root / "zero",
        {**pair_shapes(), **embedding_shapes(0)},
        modules_to_save=["embed_tokens", "lm_head"],
    )
    assert_refused(
        store, merge_of("zero"), IncompleteAdapter, "embed_tokens.weight' has shape [0, 48]", "ZeRO-3"
    )


def test_a_quantised_adapter_is_refused_with_its_dtype(store: ModelStore) -> None:
    write_adapter(store.root / "int", dtype="I8")
    assert_refused(store, merge_of("int"), UnsupportedAdapter, "has dtype I8")


def test_two_adapters_in_one_file_are_refused_by_their_names(store: ModelStore) -> None:
    shapes = {
        key.replace(".weight", f".{name}.weight"): shape
        for key, shape in pair_shapes().items()
        for name in (["default"] if "q_proj" in key else ["other"])
    }
    write_adapter(store.root / "two", shapes)
    assert_refused(store, merge_of("two"), UnsupportedAdapter, "holds 2 adapters (default, other)")


def test_a_truncated_adapter_is_refused_with_both_sizes(store: ModelStore) -> None:
    path = store.root / "fits" / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert_refused(
        store,
        merge_of("fits"),
        UnreadableFile,
        f"has {len(whole) - 1} bytes",
        f"describes {len(whole)}",
        "truncated",
    )
