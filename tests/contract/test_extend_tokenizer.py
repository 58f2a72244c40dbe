"""Extended vocabularies against the published ones, byte for byte."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from pydantic import ValidationError
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
from services.kinds.import_ import ImportRequest, PathSource
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import preflight
from services.tokenizers.extend import extend_vocabulary, sample_tokenizations
from tests.job_context import job_context
from tests.reference.tokenizer_files import sentencepiece_file, tiktoken_file
from worker.models import extend_tokenizer as extend_tokenizer_job

DATA = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real tokenizers are not on this machine")

BASE = sentencepiece_file(["<unk>", "<s>", "</s>", "a", "b"])
ADDITION = sentencepiece_file(["<unk>", "<s>", "</s>", "b", "国", "中", "a"])


@needs_data
def test_llama_and_the_chinese_pieces_give_the_published_file_of_chinese_llama() -> None:
    base, addition = (DATA / "llama.model").read_bytes(), (DATA / "chinese_sp.model").read_bytes()
    extended = extend_vocabulary(base, addition)
    digest = "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0"
    assert hashlib.sha256((DATA / "chinese-llama.model").read_bytes()).hexdigest() == digest
    assert hashlib.sha256(extended.model).hexdigest() == digest
    assert extended.counts == {"base": 32000, "added": 17953, "present": 2047, "total": 49953}


@needs_data
def test_with_a_padding_token_it_is_the_published_file_of_chinese_alpaca() -> None:
    base, addition = (DATA / "llama.model").read_bytes(), (DATA / "chinese_sp.model").read_bytes()
    extended = extend_vocabulary(base, addition, pad_token="[PAD]")
    assert extended.model == (DATA / "chinese-alpaca.model").read_bytes()
    assert hashlib.sha256(extended.model).hexdigest().startswith("2d967e85")
    assert extended.counts == {"base": 32000, "added": 17954, "present": 2047, "total": 49954}


@needs_data
def test_samples_show_fewer_tokens_for_chinese_and_the_same_for_english() -> None:
    before, after = ((DATA / f"{name}.model").read_bytes() for name in ("llama", "chinese-llama"))
    text, english = "人工智能是计算机科学的一个分支。", "Hello world"
    chinese, plain = sample_tokenizations(before, after, [text, english])
    reference = sentencepiece.SentencePieceProcessor(model_proto=after)
    assert chinese["after"] == " ".join(reference.encode(text, out_type=str))
    assert (chinese["tokens_before"], chinese["tokens_after"]) == (17, 8)
    assert plain["before"] == plain["after"] == "▁Hello ▁world"


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
    with pytest.raises(InvalidRequest, match="all 5 pieces of the addition are among the base's 5"):
        extend_vocabulary(BASE, BASE)


def test_a_padding_token_that_is_there_already_is_refused() -> None:
    for piece in ("<unk>", "国"):
        with pytest.raises(InvalidRequest, match="is a piece of the vocabulary already"):
            extend_vocabulary(BASE, ADDITION, pad_token=piece)


def test_a_truncated_addition_is_refused() -> None:
    with pytest.raises(UnreadableTokenizer, match=r"the addition \(40 bytes\) is no SentencePiece model"):
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
    assert plan.writes == {"name": "new", "vocabulary_size": 8, "added": 3}

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


@needs_data
def test_the_published_tokenizer_is_known_by_its_digest(tmp_path: Path) -> None:
    for name, file in (("base", "llama"), ("addition", "chinese_sp")):
        (tmp_path / name).mkdir()
        shutil.copy(DATA / f"{file}.model", tmp_path / name / f"{file}.model")
    result = extend_tokenizer_job.run(asked(), job_context(tmp_path)).model_dump(exclude_unset=True)
    assert result["model"]["tokenizer"]["known_as"] == "Chinese-LLaMA (49953)"
    assert result["tokenizer_parity"]["lines"] == 300
    assert 0 < result["tokenizer_parity"]["different"] < 100
    assert len(result["samples"]) == 5


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"base": "llama-3"}, UnsupportedFormat, "the base's tokenizer.model is a tiktoken tokenizer"),
        (
            {"addition": "llama-3"},
            UnsupportedFormat,
            "the addition's tokenizer.model is a tiktoken tokenizer",
        ),
        ({"base": "addition", "addition": "base"}, InvalidRequest, "all 5 pieces of the addition"),
        ({"pad_token": "国"}, InvalidRequest, "'国' is a piece of the vocabulary already"),
        ({"base": "bare"}, WrongModelKind, "'bare' is of kind 'unknown' and has no tokenizer.model"),
        ({"base": "two"}, WrongModelKind, "it has a.model, b.model"),
        ({"target": "Llama-3"}, ModelExists, "is there already"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(
    store: ModelStore, fields: dict[str, Any], error: type[GraftwerkError], message: str
) -> None:
    (store.root / "bare").mkdir()
    (store.root / "two").mkdir()
    for name in ("a", "b"):
        (store.root / "two" / f"{name}.model").write_bytes(BASE)
    with pytest.raises(error) as caught:
        preflight(asked(**fields), store, {})
    assert message in caught.value.message


def test_a_tokenizer_that_an_earlier_job_will_make_is_waited_for(store: ModelStore) -> None:
    promised = ImportRequest(kind="import", source=PathSource(path="incoming/x"), target="later")
    plan = preflight(asked(addition="later"), store, {"later": promised})
    assert plan.warnings == ["later is not there yet: it is checked when the job starts"]


@pytest.mark.parametrize(
    "fields", [{"pad_token": "a b"}, {"pad_token": "\n"}, {"pad_token": ""}, {"target": "BASE"}]
)
def test_a_request_that_means_nothing_is_refused_by_its_shape(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        asked(**fields)
