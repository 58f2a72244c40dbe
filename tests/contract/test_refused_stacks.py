"""Refusals of adapters that do not fit the base or each other: sizes, vocabularies and order."""

import shutil
from pathlib import Path

import pytest

from services.errors import (
    AdapterMismatch,
    VocabularyMismatch,
    WrongAdapterOrder,
)
from services.kinds.merge import MergeRequest
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import preflight
from tests.contract.refused_requests import assert_refused, merge_of, store
from tests.job_context import job_context
from tests.miniature import MINIATURE, unpack_adapters
from tests.reference.tensor_files import embedding_shapes, pair_shapes, write_adapter, write_base
from tests.reference.tokenizer_files import piece_names, sentencepiece_file
from worker.models import merge as merge_job

__all__ = ["store"]  # fixture


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
