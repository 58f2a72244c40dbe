"""Refusals and their messages, by preflight and again by the worker, which leaves nothing."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.errors import (
    AdapterMismatch,
    DiskFull,
    GraftwerkError,
    IncompleteAdapter,
    InvalidRequest,
    ModelExists,
    ModelNotFound,
    NonFiniteTensor,
    ShapeMismatch,
    UnknownAdapterKey,
    UnreadableFile,
    UnsupportedAdapter,
    UnsupportedOption,
    VocabularyMismatch,
    WrongAdapterOrder,
    WrongModelKind,
)
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import preflight
from services.preflight.plan import PlannedWrite
from tests.job_context import job_context
from tests.miniature import MINIATURE, unpack_adapters
from tests.reference.tensor_files import embedding_shapes, pair_shapes, write_adapter, write_base
from tests.reference.tokenizer_files import piece_names, sentencepiece_file
from worker.models import convert as convert_job
from worker.models import merge as merge_job

Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A volume with a base of 101 rows and an adapter that fits it."""
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "fits")
    return ModelStore(tmp_path)


def merge_of(*adapters: str, base: str = "base", **more: Any) -> MergeRequest:
    return MergeRequest(kind="merge", base=base, adapters=list(adapters), target="new", **more)


def assert_refused(
    store: ModelStore, request: MergeRequest | ConvertRequest, error: type[GraftwerkError], *phrases: str
) -> None:
    """Preflight and worker refuse in the same words; the volume is unchanged."""
    before = content(store)
    work = merge_job.run if isinstance(request, MergeRequest) else convert_job.run
    doors: list[Callable[[], object]] = [
        lambda: preflight(request, store, {}),
        lambda: work(request, job_context(store.root)),  # type: ignore[arg-type]
    ]
    for door in doors:
        with pytest.raises(error) as caught:
            door()
        text = f"{caught.value.message} | {caught.value.hint}"
        for phrase in phrases:
            assert phrase in text
    assert_nothing_left(store, before)


def assert_nothing_left(store: ModelStore, before: list[Path]) -> None:
    assert "new" not in store.names()
    assert content(store) == before


def content(store: ModelStore) -> list[Path]:
    """Everything on the volume but the (empty) folder for what is being made."""
    return [path for path in sorted(store.root.rglob("*")) if path != store.root / ".staging"]


# ---- the adapter itself -------------------------------------------------------------------------------


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
        ("rank_pattern", {"q_proj(": 8}), ("rank_pattern", {"(q|v)+_proj": 8}), ("alpha_pattern", {"q_proj": None}),
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


# ---- adapter and base ---------------------------------------------------------------------------------


def test_an_adapter_of_a_base_of_another_size_is_refused_with_both_shapes(store: ModelStore) -> None:
    write_adapter(store.root / "other", pair_shapes(hidden=64, kv=32))
    assert_refused(
        store, merge_of("other"), AdapterMismatch,
        "'model.layers.0.self_attn.q_proj.weight' as a tensor of shape [64, 64]", "it is [48, 48]",
    )  # fmt: skip


def test_a_wrong_width_of_the_grouped_heads_is_refused_with_both_shapes(store: ModelStore) -> None:
    write_adapter(store.root / "other", pair_shapes(kv=48))
    assert_refused(
        store,
        merge_of("other"),
        AdapterMismatch,
        "v_proj.weight' as a tensor of shape [48, 48]",
        "it is [24, 48]",
    )


def test_a_larger_tokenizer_without_embeddings_is_refused_with_both_sizes(store: ModelStore) -> None:
    write_base(store.root / "mini", rows=608)
    write_adapter(store.root / "bare", pieces=1104)
    assert_refused(
        store, merge_of("bare", base="mini"), VocabularyMismatch,
        "a tokenizer of 1104 tokens", "the embeddings have 608 rows", "must come before it",
    )  # fmt: skip


def test_extended_embeddings_without_a_tokenizer_are_refused(store: ModelStore) -> None:
    write_adapter(store.root / "mute", {**pair_shapes(), **embedding_shapes(113)})
    assert_refused(
        store, merge_of("mute"), VocabularyMismatch, "from 101 to 113 rows", "has no tokenizer.model"
    )


@pytest.mark.parametrize("only", ["model.embed_tokens.weight", "lm_head.weight"])
def test_one_extended_embedding_without_the_other_is_refused_with_both_rows(
    store: ModelStore, only: str
) -> None:
    shapes = {**pair_shapes(), f"base_model.model.{only}": (113, 48)}
    write_adapter(store.root / "one", shapes, pieces=113)
    assert_refused(store, merge_of("one"), VocabularyMismatch, f"{only} 113", " 101", "it is incomplete")


def test_embeddings_of_different_rows_are_refused_with_both(store: ModelStore) -> None:
    write_adapter(store.root / "odd", {**pair_shapes(), **embedding_shapes(113, head_rows=112)}, pieces=113)
    assert_refused(
        store, merge_of("odd"), VocabularyMismatch, "model.embed_tokens.weight 113, lm_head.weight 112"
    )


def test_a_vocabulary_that_would_shrink_is_refused_with_both_sizes(store: ModelStore) -> None:
    write_base(store.root / "large", rows=120)
    write_adapter(store.root / "small", {**pair_shapes(), **embedding_shapes(101)}, pieces=101)
    assert_refused(
        store, merge_of("small", base="large"), VocabularyMismatch, "of 101 rows", "there are 120", "shrink"
    )


def test_a_tokenizer_with_other_pieces_is_refused_with_the_first_difference(store: ModelStore) -> None:
    pieces = piece_names(101)
    pieces[57] = "other"
    write_adapter(store.root / "odd")
    (store.root / "odd" / "tokenizer.model").write_bytes(sentencepiece_file(pieces))
    assert_refused(store, merge_of("odd"), VocabularyMismatch, "token 57 is 'other'", "that is 'p54'")


def extended(store: ModelStore) -> None:
    write_adapter(store.root / "first", {**pair_shapes(), **embedding_shapes(113)}, pieces=113)
    write_adapter(store.root / "second", {**pair_shapes(), **embedding_shapes(114)}, pieces=114)


def test_a_wrong_order_is_refused_and_the_right_one_is_named(store: ModelStore) -> None:
    extended(store)
    assert_refused(
        store, merge_of("second", "first"), WrongAdapterOrder,
        "do not fit in the order second, first", "114", "113", "The order that fits is: first, second.",
    )  # fmt: skip


def test_a_wrong_order_of_three_is_refused_and_the_right_one_is_named(store: ModelStore) -> None:
    extended(store)
    assert_refused(
        store,
        merge_of("second", "fits", "first"),
        WrongAdapterOrder,
        "The order that fits is: fits, first, second.",
    )


def test_the_right_order_is_accepted(store: ModelStore) -> None:
    extended(store)
    plan = preflight(merge_of("first", "second"), store, {})
    assert plan.writes is not None
    assert (plan.writes.vocabulary_size, plan.writes.tokenizer_of) == (114, "second")


@pytest.fixture
def miniature(tmp_path: Path) -> ModelStore:
    shutil.copytree(MINIATURE / "llama", tmp_path / "llama")
    unpack_adapters(tmp_path)
    return ModelStore(tmp_path)


def test_a_known_adapter_without_the_one_before_it_is_refused(miniature: ModelStore) -> None:
    assert_refused(
        miniature, merge_of("chinese-alpaca-lora", base="llama"), WrongAdapterOrder,
        "Adapter chinese-alpaca-lora is miniature chinese-alpaca-lora", "nothing comes before it",
        "Put miniature chinese-llama-lora before it.",
    )  # fmt: skip


def test_the_known_adapters_in_the_wrong_order_are_refused(miniature: ModelStore) -> None:
    assert_refused(
        miniature, merge_of("chinese-alpaca-lora", "chinese-llama-lora", base="llama"), WrongAdapterOrder,
        "The order that fits is: chinese-llama-lora, chinese-alpaca-lora.",
    )  # fmt: skip


def test_what_is_merged_already_counts_as_before_and_is_not_merged_again(miniature: ModelStore) -> None:
    """The lineage in the manifest stands in for the adapter; merging the rest then gives the whole."""
    request = MergeRequest(kind="merge", base="llama", adapters=["chinese-llama-lora"], target="halfway")
    result = merge_job.run(request, job_context(miniature.root)).model_dump(exclude_unset=True)
    assert result["verification"]["passed"] is True

    assert_refused(
        miniature, merge_of("chinese-llama-lora", base="halfway"), WrongAdapterOrder,
        "Adapter chinese-llama-lora is merged into halfway already",
    )  # fmt: skip
    merge_job.run(merge_of("chinese-alpaca-lora", base="halfway"), job_context(miniature.root))
    manifest = read_manifest(miniature.root / "new")
    assert manifest is not None
    assert [(entry.role, entry.name) for entry in manifest.inputs] == [
        ("base", "halfway"), ("adapter", "chinese-llama-lora"), ("adapter", "chinese-alpaca-lora"),
    ]  # fmt: skip


# ---- the request and the volume -----------------------------------------------------------------------


def test_the_same_adapter_twice_is_refused(store: ModelStore) -> None:
    assert_refused(store, merge_of("fits", "fits"), InvalidRequest, "fits, fits", "use its scale instead")


def test_the_same_weights_under_two_names_are_refused(store: ModelStore) -> None:
    shutil.copytree(store.root / "fits", store.root / "copy")
    assert_refused(store, merge_of("fits", "copy"), InvalidRequest, "fits and copy hold the same weights")


def test_an_adapter_as_base_is_refused(store: ModelStore) -> None:
    assert_refused(
        store,
        merge_of("fits", base="fits"),
        WrongModelKind,
        "'fits' is of kind 'adapter'; a base model (original or huggingface) is needed",
    )


def test_a_base_as_adapter_is_refused(store: ModelStore) -> None:
    write_base(store.root / "other")
    assert_refused(
        store, merge_of("other"), WrongModelKind, "'other' is of kind 'huggingface'; an adapter is needed"
    )


def test_an_adapter_as_source_of_a_conversion_is_refused(store: ModelStore) -> None:
    request = ConvertRequest(kind="convert", source="fits", target="new")
    assert_refused(store, request, WrongModelKind, "'fits' is of kind 'adapter'")


def test_a_model_that_is_not_there_is_refused_with_those_that_are(store: ModelStore) -> None:
    assert_refused(store, merge_of("missing"), ModelNotFound, "'missing'", "there are: base, fits")


@pytest.mark.parametrize("target", ["base", "BASE", "fits", "Fits"])
def test_a_target_that_is_an_input_is_refused(target: str) -> None:
    with pytest.raises(ValidationError, match=f"target '{target}' is one of the inputs"):
        MergeRequest(kind="merge", base="base", adapters=["fits"], target=target)


def test_a_target_that_exists_in_another_letter_case_is_refused(store: ModelStore) -> None:
    write_base(store.root / "New")
    before = content(store)
    for door in (
        lambda: preflight(merge_of("fits"), store, {}),
        lambda: merge_job.run(merge_of("fits"), job_context(store.root)),
    ):
        with pytest.raises(ModelExists, match=r"'new' exists already \(ignoring case\)"):
            door()
    assert content(store) == before


def test_ranks_that_do_not_divide_the_heads_are_refused(store: ModelStore) -> None:
    request = merge_of("fits", output_format="meta", ranks=3)
    assert_refused(store, request, UnsupportedOption, "8 attention heads, which 3 ranks do not divide")


def test_an_encoding_whose_blocks_do_not_fit_the_rows_is_refused(store: ModelStore) -> None:
    request = merge_of("fits", output_format="gguf", dtype="q8_0")
    assert_refused(store, request, UnsupportedOption, "rows of 48 elements; Q8_0 encodes blocks of 32")


def test_a_full_disk_is_refused_with_both_sizes(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """91,248 elements of two bytes, and 64 MiB to spare."""
    monkeypatch.setattr(ModelStore, "free_bytes", lambda self: 1000)
    assert_refused(store, merge_of("fits"), DiskFull, "needs 67291360 bytes", "1000 are free")
    monkeypatch.setattr(ModelStore, "free_bytes", lambda self: 67291360)
    assert preflight(merge_of("fits"), store, {}).disk_needed_bytes == 67291360


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = content(store)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DiskFull, match="no space for"):
        merge_job.run(merge_of("fits"), job_context(store.root))
    assert_nothing_left(store, before)


def test_a_base_of_values_that_are_no_numbers_leaves_nothing(store: ModelStore) -> None:
    path = store.root / "base" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2:] = b"\x00\x7e"  # a NaN of float16 as the last element of lm_head
    path.write_bytes(data)
    before = content(store)
    with pytest.raises(NonFiniteTensor, match=r"'lm_head\.weight' holds 1 values"):
        merge_job.run(merge_of("fits"), job_context(store.root))
    assert_nothing_left(store, before)


def manifest_of(store: ModelStore) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((store.root / "new" / "manifest.json").read_text())
    return manifest


def test_a_merge_that_is_accepted_is_published_with_its_lineage(store: ModelStore) -> None:
    result = merge_job.run(merge_of("fits", metadata={"for": "test"}), job_context(store.root)).model_dump(
        exclude_unset=True
    )
    assert store.names() == ["base", "fits", "new"]
    figures = {"adapter": "fits", "scale": 1.0, "tensors": 12, "merged": 6, "replaced": 0}
    assert {key: result["adapters"][0][key] for key in figures} == figures
    assert result["device"] == manifest_of(store)["result"]["device"] == "cpu"
    assert result["adapters"][0]["rows_added"] == 0
    assert result["adapters"][0]["change_norms"] == {"q_proj": 0.0, "v_proj": 0.0}
    assert any(warning.startswith("Adapter fits changes nothing") for warning in result["warnings"])
    manifest = manifest_of(store)
    assert manifest["operation"] == "merge"
    assert [(entry["role"], entry["name"]) for entry in manifest["inputs"]] == [
        ("base", "base"), ("adapter", "fits"),
    ]  # fmt: skip
    assert len(manifest["tensors"]) == 30
