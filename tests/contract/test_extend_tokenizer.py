"""Extended vocabularies compared with files made by the published rule, byte for byte."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer

from services.errors import (
    GraftwerkError,
    InvalidRequest,
    ModelExists,
    UnreadableTokenizer,
    UnsupportedFormat,
    WrongModelKind,
)
from services.kinds.extend_tokenizer import ExtendTokenizerRequest
from services.models import summary
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import preflight
from services.preflight.plan import PlannedWrite
from services.tokenizers.extend import extend_vocabulary, sample_tokenizations
from tests.job_context import job_context
from tests.reference.tokenizer_files import sentencepiece_file, tiktoken_file
from tests.tokenizer_sets import PUBLISHED, TokenizerSet
from worker.models import extend_tokenizer as extend_tokenizer_job

BASE = sentencepiece_file(["<unk>", "<s>", "</s>", "a", "b"])
ADDITION = sentencepiece_file(["<unk>", "<s>", "</s>", "b", "国", "中", "a"])


def test_llama_and_the_chinese_pieces_give_the_file_of_chinese_llama(tokenizers: TokenizerSet) -> None:
    base, addition = (tokenizers.file(name).read_bytes() for name in ("llama", "chinese_sp"))
    extended = extend_vocabulary(base, addition)
    assert extended.model == tokenizers.file("chinese-llama").read_bytes()
    assert extended.counts.model_dump() == {
        "base": tokenizers.base, "added": tokenizers.added,
        "present": tokenizers.addition - tokenizers.added, "total": tokenizers.chinese,
    }  # fmt: skip


def test_with_a_padding_token_it_is_the_file_of_chinese_alpaca(tokenizers: TokenizerSet) -> None:
    base, addition = (tokenizers.file(name).read_bytes() for name in ("llama", "chinese_sp"))
    extended = extend_vocabulary(base, addition, pad_token="[PAD]")
    assert extended.model == tokenizers.file("chinese-alpaca").read_bytes()
    assert extended.counts.model_dump() == {
        "base": tokenizers.base, "added": tokenizers.added + 1,
        "present": tokenizers.addition - tokenizers.added, "total": tokenizers.chinese + 1,
    }  # fmt: skip


@pytest.mark.published
def test_the_published_files_have_the_published_digests() -> None:
    digests = {
        "chinese-llama": "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0",
        "chinese-alpaca": "2d967e855b1213a439df6c8ce2791f869c84b4f3b6cfacf22b86440b8192a2f8",
    }
    for name, digest in digests.items():
        assert hashlib.sha256(PUBLISHED.file(name).read_bytes()).hexdigest() == digest


def test_samples_show_fewer_tokens_for_chinese_and_the_same_for_english(tokenizers: TokenizerSet) -> None:
    before, after = (tokenizers.file(name).read_bytes() for name in ("llama", "chinese-llama"))
    text, english = "人工智能是计算机科学的一个分支。", "Hello world"
    chinese, plain = sample_tokenizations(before, after, [text, english])
    reference = sentencepiece.SentencePieceProcessor(model_proto=after)
    assert chinese.after == " ".join(reference.encode(text, out_type=str))
    assert (chinese.tokens_before, chinese.tokens_after) == tokenizers.sample_tokens
    assert plain.before == plain.after == "▁Hello ▁world"


def test_what_is_there_keeps_its_place_and_what_is_new_comes_in_its_own_order() -> None:
    extended = extend_vocabulary(BASE, ADDITION, pad_token="[PAD]")
    found = sentencepiece.SentencePieceProcessor(model_proto=extended.model)
    pieces = [found.id_to_piece(number) for number in range(found.get_piece_size())]
    assert pieces == ["<unk>", "<s>", "</s>", "a", "b", "国", "中", "[PAD]"]
    assert [found.get_score(number) for number in (4, 5, 7)] == [-4.0, 0.0, 0.0]
    assert not found.is_control(7)
    assert extended.model.startswith(BASE)
    assert (extended.base, extended.added, extended.present) == (5, 3, 5)


def test_the_base_as_its_own_addition_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="All 5 pieces of the addition are among the base's 5"):
        extend_vocabulary(BASE, BASE)


def test_a_padding_token_that_is_there_already_is_refused() -> None:
    for piece in ("<unk>", "国"):
        with pytest.raises(InvalidRequest, match="is a piece of the vocabulary already"):
            extend_vocabulary(BASE, ADDITION, pad_token=piece)


def test_a_truncated_addition_is_refused() -> None:
    with pytest.raises(UnreadableTokenizer, match=r"The addition \(40 bytes\) is not a SentencePiece model"):
        extend_vocabulary(BASE, ADDITION[:40])


# ---- the job ------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """`base` and `addition`, a tokenizer each under a different file name, and `llama-3`."""
    files = {
        "base/tokenizer.model": BASE,
        "addition/zh.model": ADDITION,
        "llama-3/tokenizer.model": tiktoken_file(300),
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(content)
    return ModelStore(tmp_path)


def asked(**fields: Any) -> ExtendTokenizerRequest:
    return ExtendTokenizerRequest(
        **{"kind": "extend-tokenizer", "base": "base", "addition": "addition", "target": "new"} | fields
    )


def test_the_plan_counts_what_the_job_then_makes(store: ModelStore) -> None:
    plan = preflight(asked(pad_token="[PAD]"), store, {})
    assert plan.writes == PlannedWrite(name="new", vocabulary_size=8, added=3)

    result = extend_tokenizer_job.run(asked(pad_token="[PAD]"), job_context(store.root)).model_dump(
        exclude_unset=True
    )

    folder = store.path("new")
    assert result["counts"] == {"base": 5, "added": 3, "present": 5, "total": 8}
    assert result["sha256"] == hashlib.sha256((folder / "tokenizer.model").read_bytes()).hexdigest()
    assert (result["model"]["kind"], result["model"]["vocabulary_size"]) == ("tokenizer", 8)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.kind, manifest.operation) == ("tokenizer", "extend-tokenizer")
    assert [(entry.role, entry.name, entry.digest) for entry in manifest.inputs] == [
        ("base", "base", hashlib.sha256(BASE).hexdigest()),
        ("addition", "addition", hashlib.sha256(ADDITION).hexdigest()),
    ]
    assert manifest.files["tokenizer.model"] == result["sha256"]
    found = AutoTokenizer.from_pretrained(folder)
    assert (found.pad_token_id, found.convert_ids_to_tokens([5, 6])) == (7, ["国", "中"])


def test_the_table_of_an_extended_tokenizer_differs_on_some_lines(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    result = extended_by_a_job(tmp_path, tokenizers)
    assert result["tokenizer_parity"]["lines"] == 300
    assert 0 < result["tokenizer_parity"]["different"] < 100
    assert len(result["samples"]) == 5


@pytest.mark.published
def test_the_published_tokenizer_is_known_by_its_digest(tmp_path: Path) -> None:
    result = extended_by_a_job(tmp_path, PUBLISHED)
    assert result["model"]["tokenizer"]["known_as"] == "Chinese-LLaMA (49953)"


def test_a_tokenizer_is_known_by_its_digest(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(extend_vocabulary(BASE, ADDITION).model).hexdigest()
    monkeypatch.setattr(summary, "KNOWN_TOKENIZERS", {digest: "Known (7)"})
    result = extend_tokenizer_job.run(asked(), job_context(store.root)).model_dump(exclude_unset=True)
    assert result["model"]["tokenizer"]["known_as"] == "Known (7)"


def extended_by_a_job(volume: Path, tokenizers: TokenizerSet) -> dict[str, Any]:
    """The result of a job that extends LLaMA's tokenizer with the Chinese pieces."""
    for name, file in (("base", "llama"), ("addition", "chinese_sp")):
        (volume / name).mkdir()
        shutil.copy(tokenizers.file(file), volume / name / f"{file}.model")
    return extend_tokenizer_job.run(asked(), job_context(volume)).model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"base": "llama-3"}, UnsupportedFormat, "The base's tokenizer.model is a tiktoken tokenizer"),
        (
            {"addition": "llama-3"},
            UnsupportedFormat,
            "The addition's tokenizer.model is a tiktoken tokenizer",
        ),
        ({"base": "addition", "addition": "base"}, InvalidRequest, "All 5 pieces of the addition"),
        ({"pad_token": "国"}, InvalidRequest, "'国' is a piece of the vocabulary already"),
        ({"base": "bare"}, WrongModelKind, "'bare' is of kind 'unknown' and has no tokenizer.model"),
        (
            {"base": "bytes"},
            UnsupportedFormat,
            "The tokenizer.json of 'bytes' is a byte-level tokenizer; only SentencePiece",
        ),
        ({"base": "two"}, WrongModelKind, "it has a.model, b.model"),
        ({"target": "Llama-3"}, ModelExists, "exists already"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(
    store: ModelStore, fields: dict[str, Any], error: type[GraftwerkError], message: str
) -> None:
    (store.root / "bare").mkdir()
    (store.root / "two").mkdir()
    (store.root / "bytes").mkdir()
    table = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    table.decoder = decoders.ByteLevel()
    table.save(str(store.root / "bytes" / "tokenizer.json"))
    for name in ("a", "b"):
        (store.root / "two" / f"{name}.model").write_bytes(BASE)
    with pytest.raises(error) as caught:
        preflight(asked(**fields), store, {})
    assert message in caught.value.message


def test_a_tokenizer_that_an_earlier_job_will_make_is_waited_for(store: ModelStore) -> None:
    plan = preflight(asked(addition="later"), store, {"later"})
    assert plan.warnings == ["later does not exist yet. It is checked when the job starts."]


@pytest.mark.parametrize(
    "fields", [{"pad_token": "a b"}, {"pad_token": "\n"}, {"pad_token": ""}, {"target": "BASE"}]
)
def test_a_request_that_means_nothing_is_refused_by_its_shape(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        asked(**fields)
