"""The `tokenizer.json` that we write, loaded by transformers, against SentencePiece and tiktoken themselves."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer

from services.errors import UnreadableTokenizer
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.kinds.shared import AdapterChoice
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.tokenizers import check_tokenizer, complete_tokenizer, load_tokenizer
from services.tokenizers.parity import mixed_lines as built_in_lines
from tests.corpus import mixed_lines
from tests.job_context import job_context
from tests.reference.make_original import SMALL, random_state, save_original
from tests.reference.peft_merge import make_adapter, random_model, save_model, write_tokenizer
from tests.reference.tiktoken_encoding import llama3_encoding
from tests.reference.tokenizer_files import piece_names, sentencepiece_file, tiktoken_file
from tests.tokenizer_sets import TokenizerSet
from worker.models import convert as convert_job
from worker.models import merge as merge_job

LOOKALIKES = ("<s>", "</s>", "<unk>", "[PAD]", "<|begin_of_text|>", "<|eot_id|>")
LINES = [line for line in mixed_lines(1500) if not any(piece in line for piece in LOOKALIKES)]
SCALED_CONFIG = {
    "model_type": "llama", "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


def folder_of(tmp_path: Path, file: Path, **files: dict[str, Any]) -> Path:
    folder = tmp_path / file.stem
    folder.mkdir()
    shutil.copy(file, folder / "tokenizer.model")
    for stem, content in ({"config": {"model_type": "llama"}} | files).items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def different(found: Any, reference: Any, bos: int, lines: Sequence[str] = LINES) -> list[str]:
    """The lines that transformers' tokenizer encodes unlike the reference with the beginning-of-text token."""
    return [line for line in lines if found(line)["input_ids"] != [bos, *reference(line)]]


def sentencepiece_of(folder: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def json_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


# ---- SentencePiece ------------------------------------------------------------------------------------


def test_llamas_table_encodes_and_decodes_every_line_as_sentencepiece_does(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    folder = folder_of(tmp_path, tokenizers.file("llama"))
    completed = complete_tokenizer(folder)
    reference, found = sentencepiece_of(folder), AutoTokenizer.from_pretrained(folder)

    assert len(LINES) > 1000
    assert different(found, reference.encode, 1) == []
    assert [i for i in map(reference.encode, LINES) if found.decode([1, *i], skip_special_tokens=True)
            != reference.decode(i)] == []  # fmt: skip
    assert completed.parity is not None
    assert (completed.parity.lines, completed.parity.different, completed.warnings) == (300, 0, ())
    assert (found.bos_token_id, found.eos_token_id, found.unk_token_id, len(found)) == (
        1,
        2,
        0,
        tokenizers.base,
    )
    assert "token_type_ids" not in found("Hi")


def test_text_between_special_tokens_begins_like_any_text(tmp_path: Path, tokenizers: TokenizerSet) -> None:
    folder = folder_of(tmp_path, tokenizers.file("llama"))
    complete_tokenizer(folder)
    reference, found = sentencepiece_of(folder), AutoTokenizer.from_pretrained(folder)
    assert found("Hi</s>there")["input_ids"] == [1, *reference.encode("Hi"), 2, *reference.encode("there")]


MARKS = ["<|im_start|>", "<|im_end|>"]
MARKED_TEXT = "<s><|im_start|>user\nHi <tool> there<|im_end|>"


def saved_with_marks(folder: Path) -> Any:
    """Returns transformers' tokenizer of a folder after it got special tokens and a plain one and was saved there."""
    complete_tokenizer(folder)
    found = AutoTokenizer.from_pretrained(folder)
    found.add_special_tokens({"additional_special_tokens": MARKS})
    found.add_tokens([AddedToken("<tool>", normalized=False)])
    found.save_pretrained(folder)
    return found


def test_tokens_that_transformers_added_are_read_next_to_tokenizer_model(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    folder = folder_of(tmp_path, tokenizers.file("llama"))
    reference = saved_with_marks(folder)
    config = json_of(folder / "tokenizer_config.json")
    assert "added_tokens_decoder" not in config  # tokenizer.json alone has them

    found = load_tokenizer(folder)
    ids = reference(MARKED_TEXT, add_special_tokens=False)["input_ids"]
    assert {tokenizers.base, tokenizers.base + 1, tokenizers.base + 2} < set(ids)
    assert found.encode(MARKED_TEXT, add_bos=False, parse_special=True) == ids
    assert found.hidden_ids >= set(reference.convert_tokens_to_ids(MARKS))
    assert tokenizers.base + 2 not in found.hidden_ids


def test_added_tokens_of_a_tokenizer_json_stay_in_what_is_written_again(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    folder = folder_of(tmp_path, tokenizers.file("llama"))
    reference = saved_with_marks(folder)
    ids, text = reference(MARKED_TEXT)["input_ids"], "user\nHi <tool> there"
    complete_tokenizer(folder)
    again = AutoTokenizer.from_pretrained(folder)
    assert again(MARKED_TEXT)["input_ids"] == ids
    shown = again.decode(ids, skip_special_tokens=True)
    assert shown == reference.decode(ids, skip_special_tokens=True)
    assert shown.split() == text.split()


def test_added_tokens_of_another_vocabulary_are_not_taken(tmp_path: Path, tokenizers: TokenizerSet) -> None:
    folder = folder_of(tmp_path, tokenizers.file("llama"))
    saved_with_marks(folder)
    shutil.copy(tokenizers.file("chinese-llama"), folder / "tokenizer.model")
    found = load_tokenizer(folder)
    reference = sentencepiece_of(folder)
    assert found.encode("<|im_end|>", add_bos=False, parse_special=True) == reference.encode("<|im_end|>")
    assert found.vocabulary_size == reference.get_piece_size()


def test_as_a_llama_tokenizer_transformers_would_give_other_tokens(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    """The reason for naming another class: LlamaTokenizer rebuilds the normalizer in its own way."""
    folder = folder_of(tmp_path, tokenizers.file("llama"))
    complete_tokenizer(folder)
    config = json_of(folder / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "LlamaTokenizer"}))
    rebuilt = AutoTokenizer.from_pretrained(folder)
    assert len(different(rebuilt, sentencepiece_of(folder).encode, 1)) > 100


def test_equal_scores_make_differences_that_are_counted_and_told(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    folder = folder_of(tmp_path, tokenizers.file("chinese-llama"))
    completed = complete_tokenizer(folder)
    reference, found = sentencepiece_of(folder), AutoTokenizer.from_pretrained(folder)

    assert completed.parity is not None
    lines = built_in_lines()
    assert completed.parity.lines == len(lines) == len(set(lines)) >= 200
    assert completed.parity.different == len(different(found, reference.encode, 1, lines)) > 0
    assert len(different(found, reference.encode, 1)) < 0.15 * len(LINES)
    (warning,) = completed.warnings
    assert f"on {completed.parity.different} of 300 lines" in warning


def test_every_line_keeps_its_text_where_the_tokens_differ(tmp_path: Path, tokenizers: TokenizerSet) -> None:
    folder = folder_of(tmp_path, tokenizers.file("chinese-llama"))
    complete_tokenizer(folder)
    reference, found = sentencepiece_of(folder), AutoTokenizer.from_pretrained(folder)
    wrong = [line for line in LINES if reference.decode(found(line)["input_ids"][1:]) != reference.decode(
        reference.encode(line))]  # fmt: skip
    assert wrong == []


def test_the_bytes_of_the_model_stay_and_a_second_run_changes_nothing(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    folder = folder_of(tmp_path, tokenizers.file("llama"))
    complete_tokenizer(folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    complete_tokenizer(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert first["tokenizer.model"] == tokenizers.file("llama").read_bytes()


def test_a_table_of_another_vocabulary_is_not_left_behind(tmp_path: Path, tokenizers: TokenizerSet) -> None:
    stale = folder_of(tmp_path, tokenizers.file("llama"))
    complete_tokenizer(stale)
    folder = folder_of(tmp_path, tokenizers.file("chinese-alpaca"), special_tokens_map={"pad_token": "[PAD]"})
    shutil.copy(stale / "tokenizer.json", folder / "tokenizer.json")

    complete_tokenizer(folder)

    table, reference = RustTokenizer.from_file(str(folder / "tokenizer.json")), sentencepiece_of(folder)
    assert table.get_vocab() == {
        reference.id_to_piece(number): number for number in range(tokenizers.chinese + 1)
    }
    found = AutoTokenizer.from_pretrained(folder)
    assert (found.pad_token_id, found.convert_ids_to_tokens(tokenizers.chinese)) == (
        tokenizers.chinese,
        "[PAD]",
    )


def test_added_tokens_a_chat_template_and_empty_roles_of_2023_come_out_right(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    first = tokenizers.base
    old = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "", "eos_token": "", "unk_token": "", "chat_template": "{{ 1 }}",
        "added_tokens_decoder": {str(first + 1): {"content": "<|im_end|>", "special": True},
                                 str(first + 3): {"content": "<image>", "special": False}},
    }  # fmt: skip
    folder = folder_of(tmp_path, tokenizers.file("llama"), tokenizer_config=old)
    complete_tokenizer(folder)
    found = AutoTokenizer.from_pretrained(folder)

    assert (found.bos_token, found.eos_token, found.unk_token) == ("<s>", "</s>", "<unk>")
    assert found.chat_template == "{{ 1 }}"
    assert found("a<image>b<|im_end|>", add_special_tokens=False)["input_ids"] == [
        tokenizers.a,
        first + 3,
        tokenizers.b,
        first + 1,
    ]
    assert found.convert_ids_to_tokens([first, first + 2]) == [
        f"<|reserved_token_{first}|>",
        f"<|reserved_token_{first + 2}|>",
    ]
    assert load_tokenizer(folder).special_tokens["<image>"] == first + 3


def test_tokens_that_only_the_earlier_table_added_stay(tmp_path: Path, tokenizers: TokenizerSet) -> None:
    folder = folder_of(tmp_path, tokenizers.file("llama"))
    complete_tokenizer(folder)
    table = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    table.add_special_tokens(["<|im_end|>"])
    table.save(str(folder / "tokenizer.json"))

    complete_tokenizer(folder)

    assert AutoTokenizer.from_pretrained(folder)("<|im_end|>")["input_ids"] == [1, tokenizers.base]
    assert load_tokenizer(folder).special_tokens["<|im_end|>"] == tokenizers.base


def test_a_contradiction_is_told_and_no_wrong_table_is_written(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    renamed = {"added_tokens_decoder": {"5": {"content": "<pad>", "special": True}}}
    folder = folder_of(tmp_path, tokenizers.file("llama"), tokenizer_config=renamed)
    completed = complete_tokenizer(folder)
    assert completed.parity is None
    assert "'<pad>' has the id 5 in the tokenizer's JSON files" in completed.warnings[0]
    assert not (folder / "tokenizer.json").exists()


def test_a_unigram_model_with_a_normaliser_of_its_own_is_written_too(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    folder = folder_of(tmp_path, tokenizers.file("chinese_sp"))
    completed = complete_tokenizer(folder)
    reference, found = sentencepiece_of(folder), AutoTokenizer.from_pretrained(folder)
    assert completed.parity is not None
    assert completed.parity.different == 0
    assert len(different(found, reference.encode, 1)) < 0.02 * len(LINES)


def test_a_folder_without_a_model_file_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    check_tokenizer(tmp_path)
    assert complete_tokenizer(tmp_path).parity is None
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_damaged_small_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(20)))
    check_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UnreadableTokenizer, match=r"tokenizer_config\.json is not valid JSON"):
        check_tokenizer(tmp_path)


# ---- jobs ---------------------------------------------------------------------------------------------


def shelf_of(tmp_path: Path) -> ModelStore:
    """A base and an adapter that extends its vocabulary, each with a `tokenizer.json` of a vocabulary long gone."""
    save_model(random_model(torch.float32), tmp_path / "base")
    saved = ["embed_tokens", "lm_head"]
    make_adapter(tmp_path / "zh", seed=5, vocabulary=107, modules_to_save=saved)
    write_tokenizer(tmp_path / "zh", 107)
    stale = RustTokenizer(models.BPE(vocab={"x": 0}, merges=[]))
    for name in ("base", "zh"):
        stale.save(str(tmp_path / name / "tokenizer.json"))
    return ModelStore(tmp_path)


@pytest.mark.parametrize(("kind", "size"), [("convert", 101), ("merge", 107)])
def test_what_a_job_makes_has_the_table_of_its_own_vocabulary(tmp_path: Path, kind: str, size: int) -> None:
    store = shelf_of(tmp_path)
    if kind == "convert":
        result = convert_job.run(
            ConvertRequest(kind="convert", source="base", target="new"), job_context(store.root)
        )
    else:
        result = merge_job.run(
            MergeRequest(kind="merge", base="base", adapters=[AdapterChoice(name="zh")], target="new"),
            job_context(store.root),
        )

    table = RustTokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))

    assert table.get_vocab_size() == size
    assert result.model_dump()["tokenizer_parity"] == {"lines": 300, "different": 0}
    manifest = read_manifest(tmp_path / "new")
    assert manifest is not None
    assert manifest.result["tokenizer_parity"] == {"lines": 300, "different": 0}
    assert AutoTokenizer.from_pretrained(tmp_path / "new").convert_ids_to_tokens(size - 1) == f"p{size - 4}"


def test_a_job_says_in_its_manifest_where_the_table_differs(tmp_path: Path, tokenizers: TokenizerSet) -> None:
    sizes = replace(SMALL, vocab_size=tokenizers.chinese)
    source = save_original(tmp_path / "llama", [random_state(sizes)], sizes.params)
    shutil.copy(tokenizers.file("chinese-llama"), source / "tokenizer.model")
    store = ModelStore(tmp_path)

    result = convert_job.run(
        ConvertRequest(kind="convert", source="llama", target="new"), job_context(store.root)
    )

    manifest = read_manifest(tmp_path / "new")
    assert manifest is not None
    parity = result.tokenizer_parity
    assert parity is not None
    assert manifest.warnings == result.warnings
    assert f"on {parity.different} of 300 lines" in manifest.warnings[-1]


# ---- tiktoken -----------------------------------------------------------------------------------------


def test_llama_3s_table_encodes_and_decodes_every_line_as_tiktoken_does(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    folder = folder_of(tmp_path, tokenizers.file("llama3"))
    completed = complete_tokenizer(folder)
    reference, found = llama3_encoding(tokenizers.file("llama3")), AutoTokenizer.from_pretrained(folder)

    assert len(LINES) > 1000
    assert different(found, reference.encode_ordinary, tokenizers.ranks) == []
    assert [i for i in map(reference.encode_ordinary, LINES) if found.decode(i) != reference.decode(i)] == []
    assert completed.parity is not None
    assert completed.parity.different == 0
    assert (found.bos_token, found.eos_token, len(found)) == (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        tokenizers.ranks + 256,
    )
    assert found.convert_ids_to_tokens([tokenizers.ranks + offset for offset in (4, 8, 10, 255)]) == [
        "<|reserved_special_token_2|>", "<|reserved_special_token_4|>", "<|reserved_special_token_5|>",
        "<|reserved_special_token_250|>",
    ]  # fmt: skip


def test_an_instruct_model_of_3_1_has_its_tokens_end_of_turn_and_template(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    folder = folder_of(tmp_path, tokenizers.file("llama3"), config=SCALED_CONFIG)
    complete_tokenizer(folder, instruct=True)
    found = AutoTokenizer.from_pretrained(folder)

    assert found.convert_ids_to_tokens([tokenizers.ranks + offset for offset in (4, 8, 10, 255)]) == [
        "<|finetune_right_pad_id|>", "<|eom_id|>", "<|python_tag|>", "<|reserved_special_token_247|>",
    ]  # fmt: skip
    assert (found.eos_token_id, found.pad_token_id) == (tokenizers.ranks + 9, tokenizers.ranks + 4)
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Bye"},
    ]  # fmt: skip
    assert found.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_the_files_of_a_tiny_tiktoken_model_name_its_own_numbers(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file(301))
    complete_tokenizer(tmp_path)
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert found("Aé")["input_ids"] == [301, 65, 0xC3, 0xA9]
    assert (found.eos_token_id, len(found)) == (302, 557)
