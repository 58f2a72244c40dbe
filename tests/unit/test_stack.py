"""Orders of adapters that fit a base: rows, tokenizers and shapes, from headers alone."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.adapters.adapter import Adapter, read_adapter
from services.adapters.adapter_config import Scales
from services.adapters.stack import Stack, check_stack
from services.architectures.checkpoint import Checkpoint
from services.architectures.checkpoint_reader import read_checkpoint
from services.errors import (
    AdapterMismatch,
    InvalidRequest,
    UnknownAdapterKey,
    UnsupportedAdapter,
    VocabularyMismatch,
    WrongAdapterOrder,
)
from services.models.known_artifacts import KNOWN_ADAPTERS, check_known_order
from tests.reference.tensor_files import (
    embedding_shapes,
    llama_shapes,
    pair_shapes,
    safetensors_file,
    write_adapter,
    write_base,
)

PUBLISHED_ADAPTERS = Path(__file__).parents[1] / "fixtures" / "published_adapters.json"
PREFIX = "base_model.model."


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return read_checkpoint(write_base(tmp_path / "base"))


def adapter(
    folder: Path,
    *,
    rows: int | None = None,
    pieces: int | None = None,
    more: Mapping[str, tuple[int, ...]] = {},
) -> Adapter:
    shapes = {**pair_shapes(), **(embedding_shapes(rows) if rows else {}), **more}
    return read_adapter(write_adapter(folder, shapes, pieces=pieces))


def test_no_change_of_the_vocabulary_keeps_the_bases_tokenizer(base: Checkpoint, tmp_path: Path) -> None:
    assert check_stack(base, [adapter(tmp_path / "a"), adapter(tmp_path / "b")]) == Stack(
        101, base.vocabulary, base.folder, (), base=base
    )


def test_the_last_adapter_with_a_tokenizer_gives_it(base: Checkpoint, tmp_path: Path) -> None:
    first = adapter(tmp_path / "first", rows=113, pieces=113)
    second = adapter(tmp_path / "second", rows=114, pieces=114)
    plain = adapter(tmp_path / "plain")
    stack = check_stack(base, [first, second, plain])
    assert (stack.vocabulary_rows, stack.tokenizer_folder, stack.warnings) == (114, second.folder, ())


def test_rows_beyond_the_tokenizer_are_padding_and_a_warning(base: Checkpoint, tmp_path: Path) -> None:
    stack = check_stack(base, [adapter(tmp_path / "padded", rows=128, pieces=113)])
    assert stack.vocabulary_rows == 128
    assert stack.warnings == (
        "Adapter padded: its embeddings have 128 rows and its tokenizer 113 tokens; 15 rows are padding.",
    )


def test_an_adapter_after_the_extension_may_change_the_new_rows_by_a_pair(
    base: Checkpoint, tmp_path: Path
) -> None:
    """A pair on the embeddings must have as many rows as there are by then: 113, not the base's 101."""
    pair = {
        PREFIX + "model.embed_tokens.lora_embedding_A": (8, 113),
        PREFIX + "model.embed_tokens.lora_embedding_B": (48, 8),
    }
    extending = adapter(tmp_path / "extending", rows=113, pieces=113)
    changing = adapter(tmp_path / "changing", more=pair)
    assert check_stack(base, [extending, changing]).vocabulary_rows == 113
    with pytest.raises(AdapterMismatch, match=r"shape \[113, 48\]; in the base base it is \[101, 48\]"):
        check_stack(base, [changing])
    with pytest.raises(WrongAdapterOrder, match="do not fit in the order changing, extending") as caught:
        check_stack(base, [changing, extending])
    assert caught.value.hint == "The order that fits is: extending, changing."
    assert caught.value.order == ["extending", "changing"]


def test_the_same_folder_twice_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    one = adapter(tmp_path / "one")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    with pytest.raises(InvalidRequest, match="An adapter is named twice in one, link"):
        check_stack(base, [one, read_adapter(tmp_path / "link")])


def test_what_fits_in_no_order_keeps_its_own_reason(base: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(VocabularyMismatch, match=r"from 101 to 113 rows and has no tokenizer\.model"):
        check_stack(base, [adapter(tmp_path / "mute", rows=113), adapter(tmp_path / "plain")])


def test_embeddings_of_a_tied_base_grow_with_the_head_or_alone(tmp_path: Path) -> None:
    """The base stays tied: the adapter does not name lm_head in modules_to_save, so its file holds one tensor twice."""
    folder = write_base(tmp_path / "tied", tie_word_embeddings=True)
    shapes = {name: shape for name, shape in llama_shapes().items() if name != "lm_head.weight"}
    (folder / "model.safetensors").write_bytes(safetensors_file(shapes))
    base = read_checkpoint(folder)
    both = check_stack(base, [adapter(tmp_path / "a", rows=113, pieces=113)])
    assert (both.vocabulary_rows, both.base.head, list(both.adapters[0].copies)) == (
        113,
        None,
        ["lm_head.weight"],
    )
    with pytest.raises(
        UnsupportedAdapter, match=r"holds 'lm_head\.weight' and no 'model\.embed_tokens\.weight'"
    ):
        check_stack(base, [adapter(tmp_path / "head", more={PREFIX + "lm_head.weight": (101, 48)})])
    alone = {PREFIX + "model.embed_tokens.weight": (113, 48)}
    assert check_stack(base, [adapter(tmp_path / "b", more=alone, pieces=113)]).vocabulary_rows == 113


def test_a_replaced_tensor_of_another_shape_is_refused_with_both(base: Checkpoint, tmp_path: Path) -> None:
    odd = adapter(tmp_path / "odd", more={PREFIX + "model.norm.weight": (64,)})
    with pytest.raises(AdapterMismatch, match=r"'model\.norm\.weight' as a tensor of shape \[64\].* \[48\]"):
        check_stack(base, [odd])


def test_a_replaced_tensor_that_the_base_does_not_have_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    odd = adapter(tmp_path / "odd", more={PREFIX + "model.layers.7.input_layernorm.weight": (48,)})
    with pytest.raises(UnknownAdapterKey, match=r"layers\.7\.input_layernorm"):
        check_stack(base, [odd])


def test_a_base_without_a_tokenizer_takes_the_adapters(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "tokenizer.model").unlink()
    one = adapter(tmp_path / "one", rows=113, pieces=113)
    assert check_stack(read_checkpoint(folder), [one]).tokenizer_folder == one.folder


# ---- tokenizer.json -----------------------------------------------------------------------------------


def byte_level(folder: Path, count: int, **names: str) -> Path:
    """Writes a byte-level tokenizer.json of this many tokens, those after the 90th added; `names` gives some other texts."""
    pieces = {chr(0x21 + number): number for number in range(90)}
    added = [
        {"id": number, "content": names.get(f"token_{number}", f"<|{number}|>"), "special": True,
         "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for number in range(90, count)
    ]  # fmt: skip
    content = {
        "added_tokens": added, "pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": pieces, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def byte_base(tmp_path: Path) -> Checkpoint:
    folder = write_base(tmp_path / "bytes")
    (folder / "tokenizer.model").unlink()
    return read_checkpoint(byte_level(folder, 95))


def byte_adapter(folder: Path, count: int, rows: int | None = None, **names: str) -> Adapter:
    shapes = {**pair_shapes(), **(embedding_shapes(rows) if rows else {})}
    return read_adapter(byte_level(write_adapter(folder, shapes), count, **names))


def test_a_byte_level_tokenizer_is_extended_by_an_adapters(byte_base: Checkpoint, tmp_path: Path) -> None:
    one = byte_adapter(tmp_path / "one", 104, rows=104)
    stack = check_stack(byte_base, [one])
    assert byte_base.vocabulary is not None
    assert (byte_base.vocabulary.kind, byte_base.vocabulary.size) == ("byte-level", 95)
    assert (stack.vocabulary_rows, stack.tokenizer_folder, stack.vocabulary) == (
        104,
        one.folder,
        one.vocabulary,
    )


def test_new_tokens_may_take_rows_of_padding(byte_base: Checkpoint, tmp_path: Path) -> None:
    one = byte_adapter(tmp_path / "one", 97)
    assert check_stack(byte_base, [one]).tokenizer_folder == one.folder
    large = byte_adapter(tmp_path / "large", 102)
    with pytest.raises(VocabularyMismatch, match="tokenizer of 102 tokens; the embeddings have 101 rows"):
        check_stack(byte_base, [large])


def test_a_copy_of_the_bases_table_leaves_its_tokenizer(byte_base: Checkpoint, tmp_path: Path) -> None:
    stack = check_stack(byte_base, [byte_adapter(tmp_path / "one", 95)])
    assert (stack.tokenizer_folder, stack.vocabulary) == (byte_base.folder, byte_base.vocabulary)


def test_another_byte_level_tokenizer_is_refused_with_the_token(
    byte_base: Checkpoint, tmp_path: Path
) -> None:
    one = byte_adapter(tmp_path / "one", 95, token_92="<|other|>")
    with pytest.raises(VocabularyMismatch, match=r"token 92 is '<\|other\|>'; before it that is '<\|92\|>'"):
        check_stack(byte_base, [one])


def test_a_table_is_compared_with_the_table_next_to_a_tokenizer_model(tmp_path: Path) -> None:
    """tokenizer.model lacks the added tokens; the adapter's table brings nothing that the base's does not have."""
    folder = byte_level(write_base(tmp_path / "both"), 95)
    base = read_checkpoint(folder)
    assert base.vocabulary is not None
    assert base.vocabulary.file == "tokenizer.model"
    assert check_stack(base, [byte_adapter(tmp_path / "one", 95)]).tokenizer_folder == folder


# ---- rank and scale -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "module", "expected"),
    [
        ({}, "model.layers.1.self_attn.q_proj", (8, 2.0)),
        ({"use_rslora": True, "r": 16}, "x", (16, 4.0)),
        ({"rank_pattern": {"q_proj": 4}}, "model.layers.1.self_attn.q_proj", (4, 4.0)),
        ({"rank_pattern": {"q_proj": 4}}, "model.layers.1.self_attn.k_proj", (8, 2.0)),
        ({"rank_pattern": {"proj": 4}}, "model.layers.1.self_attn.q_proj", (8, 2.0)),
        ({"rank_pattern": {r"layers\.1\..*": 4}}, "model.layers.1.self_attn.q_proj", (4, 4.0)),
        ({"alpha_pattern": {"q_proj": 4}}, "model.layers.1.self_attn.q_proj", (8, 0.5)),
        (
            {"alpha_pattern": {"v_proj": 4, "self_attn.q_proj": 32, "q_proj": 2}},
            "a.self_attn.q_proj",
            (8, 4.0),
        ),
        ({"rank_pattern": None, "alpha_pattern": {}}, "x", (8, 2.0)),
    ],
)
def test_rank_and_scale_of_a_module(
    config: dict[str, object], module: str, expected: tuple[int, float]
) -> None:
    assert Scales("a", {"peft_type": "LORA", "r": 8, "lora_alpha": 16, **config}).of(module) == expected


# ---- published adapters -------------------------------------------------------------------------------


def test_published_adapters_their_bases_and_predecessors_are_those_of_the_list() -> None:
    listed = json.loads(PUBLISHED_ADAPTERS.read_text())["adapters"]
    ours = {
        digest: (known.name, known.base, known.before)
        for digest, known in KNOWN_ADAPTERS.items()
        if "miniature" not in known.name
    }
    assert len(ours) == 15
    assert ours == {entry["sha256"]: (entry["adapter"], entry["base"], entry["before"]) for entry in listed}


def digest_of(name: str) -> str:
    return next(digest for digest, known in KNOWN_ADAPTERS.items() if known.name == name)


@pytest.mark.parametrize("edition", ["Plus", "Pro"])
@pytest.mark.parametrize("size", ["7B", "13B", "33B"])
def test_alpaca_plus_and_pro_need_llama_plus_of_the_same_size(edition: str, size: str) -> None:
    alpaca = ("alpaca", digest_of(f"Chinese-Alpaca-{edition}-{size}"))
    plus = ("plus", digest_of(f"Chinese-LLaMA-Plus-{size}"))
    check_known_order([plus, alpaca], [])
    check_known_order([alpaca], [plus[1]])
    with pytest.raises(
        WrongAdapterOrder, match=f"with Chinese-LLaMA-Plus-{size} merged in; here nothing comes"
    ):
        check_known_order([alpaca], [])
    plain = ("plain", digest_of(f"Chinese-LLaMA-{size}"))
    with pytest.raises(WrongAdapterOrder, match=f"here Chinese-LLaMA-{size} comes before it"):
        check_known_order([plain, alpaca], [])
    with pytest.raises(WrongAdapterOrder) as caught:
        check_known_order([plain, alpaca, ("unknown", None), plus], [])
    assert caught.value.order == ["plain", "unknown", "plus", "alpaca"]
    other = ("other", digest_of("Chinese-LLaMA-Plus-7B" if size != "7B" else "Chinese-LLaMA-Plus-13B"))
    with pytest.raises(WrongAdapterOrder) as caught:
        check_known_order([other, alpaca], [])
    assert caught.value.order == [], "the adapter that is needed is not among them"


@pytest.mark.parametrize("size", ["7B", "13B", "33B"])
def test_the_first_editions_need_nothing_before_them(size: str) -> None:
    for name in ("Chinese-LLaMA", "Chinese-LLaMA-Plus", "Chinese-Alpaca"):
        check_known_order([(name, digest_of(f"{name}-{size}"))], [])


def test_an_unknown_adapter_may_stand_for_the_one_before() -> None:
    """It may be a copy of it in another format: its digest does not tell."""
    check_known_order([("unknown", "0" * 64), ("alpaca", digest_of("Chinese-Alpaca-Plus-7B"))], [])
    check_known_order([("unknown", None), ("alpaca", digest_of("Chinese-Alpaca-Plus-7B"))], [])
