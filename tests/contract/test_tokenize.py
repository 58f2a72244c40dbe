"""Tokenize jobs against SentencePiece and transformers themselves."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from services.convert import convert
from services.errors import (
    GraftwerkError,
    InvalidRequest,
    ModelNotFound,
    UnreadableFile,
    VocabularyMismatch,
    WrongModelKind,
)
from services.kinds.tokenize import TokenizeRequest, TokenizeResult
from services.models.store import ModelStore
from services.preflight import preflight
from tests.job_context import job_context
from tests.miniature import ADAPTERS, MINIATURE, unpack_adapters
from worker.inference import tokenizer_cache
from worker.inference.memory_wait import MemoryWait
from worker.inference.model_cache import ModelCache
from worker.inference.session import open_session

TEXTS = ["What is the capital of China?", "中国的首都是哪里？", "", " two  spaces\n</s>", "🦙 <s>"]


def sentencepiece_of(file: Path) -> Any:
    loaded: Any = sentencepiece.SentencePieceProcessor
    return loaded(model_file=str(file))


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature in both layouts, its adapters, its tokenizer alone, and a byte-level tokenizer."""
    root = tmp_path_factory.mktemp("volume")
    (root / "base").mkdir()
    convert(MINIATURE / "llama", root / "base")
    shutil.copytree(MINIATURE / "llama", root / "original")
    (root / "tokenizer").mkdir()
    shutil.copy(MINIATURE / "llama" / "tokenizer.model", root / "tokenizer")
    unpack_adapters(root)
    # the tokens of a mutilated model are counted too: its weights are not read
    shutil.copytree(root / "base", root / "weightless")
    for file in (root / "weightless").glob("*.safetensors"):
        file.write_bytes(b"")
    (root / "gguf").mkdir()
    (root / "gguf" / "model.gguf").write_bytes(b"GGUF")
    (root / "bare").mkdir()
    shutil.copy(root / "base" / "config.json", root / "bare")
    byte_level(root / "bytes")
    return root


def byte_level(folder: Path) -> None:
    """Writes a byte-level tokenizer, trained on a few lines, which begins each text with a token."""
    folder.mkdir()
    table = Tokenizer(models.BPE())
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|begin|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    table.train_from_iterator(TEXTS * 3, trainer)
    table.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    table.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def run(volume: Path, model: str, **fields: Any) -> TokenizeResult:
    request = TokenizeRequest.model_validate({"kind": "tokenize", "model": model, **fields})
    preflight(request, ModelStore(volume), ())
    session = open_session(request, job_context(volume))
    assert session.needs() is None
    while not session.done:
        session.step()
    result = session.result()
    assert isinstance(result, TokenizeResult)
    return result


@pytest.mark.parametrize("model", ["base", "original", "tokenizer", "weightless"])
def test_texts_have_the_ids_of_sentencepiece_after_the_beginning_of_text(volume: Path, model: str) -> None:
    reference = sentencepiece_of(MINIATURE / "llama" / "tokenizer.model")
    result = run(volume, model, texts=TEXTS, return_pieces=True)
    assert result.token_ids == [[reference.bos_id(), *reference.encode(text)] for text in TEXTS]
    assert result.pieces == [["<s>", *reference.encode(text, out_type=str)] for text in TEXTS]
    assert result.texts is None
    assert result.tokenizer.vocabulary_size == reference.vocab_size()
    assert (result.tokenizer.bos_token, result.tokenizer.eos_token) == ("<s>", "</s>")


def test_without_special_tokens_the_ids_are_those_of_the_text_alone(volume: Path) -> None:
    reference = sentencepiece_of(MINIATURE / "llama" / "tokenizer.model")
    result = run(volume, "base", texts=TEXTS, add_special_tokens=False)
    assert result.token_ids == [reference.encode(text) for text in TEXTS]
    assert result.pieces is None


def test_special_tokens_in_a_text_are_tokens_only_if_that_is_asked_for(volume: Path) -> None:
    reference = sentencepiece_of(MINIATURE / "llama" / "tokenizer.model")
    fields = {"texts": ["</s>"], "add_special_tokens": False}
    assert run(volume, "base", **fields, parse_special=True).token_ids == [[reference.eos_id()]]
    assert run(volume, "base", **fields).token_ids == [reference.encode("</s>")]
    assert len(reference.encode("</s>")) > 1


def test_ids_have_the_texts_of_sentencepiece(volume: Path) -> None:
    reference = sentencepiece_of(MINIATURE / "llama" / "tokenizer.model")
    lists = [reference.encode(text) for text in TEXTS]
    result = run(volume, "base", token_ids=lists)
    assert result.texts == [reference.decode(ids) for ids in lists]
    assert result.token_ids is None
    assert run(volume, "base", token_ids=[[1], [2, 1]]).texts == ["<s>", "</s><s>"]


def test_an_adapter_on_the_fly_brings_its_vocabulary(volume: Path) -> None:
    grown = sentencepiece_of(volume / ADAPTERS[1] / "tokenizer.model")
    small = sentencepiece_of(MINIATURE / "llama" / "tokenizer.model")
    result = run(volume, "base", adapters=ADAPTERS, texts=TEXTS)
    assert result.token_ids == [[1, *grown.encode(text)] for text in TEXTS]
    assert grown.encode(TEXTS[1]) != small.encode(TEXTS[1])
    assert result.tokenizer.vocabulary_size > small.vocab_size()
    last = grown.vocab_size() - 1
    assert run(volume, "base", adapters=ADAPTERS, token_ids=[[last]]).texts == [grown.decode([last])]
    with pytest.raises(InvalidRequest, match=f"has {last} at position 0"):
        run(volume, "base", token_ids=[[last]])


def test_a_byte_level_tokenizer_gives_the_ids_of_transformers(volume: Path) -> None:
    reference: Any = PreTrainedTokenizerFast.from_pretrained(volume / "bytes")
    result = run(volume, "bytes", texts=TEXTS)
    assert result.token_ids == reference(TEXTS)["input_ids"]
    lists = reference(TEXTS)["input_ids"]
    assert run(volume, "bytes", token_ids=lists).texts == reference.batch_decode(
        lists, clean_up_tokenization_spaces=False
    )
    facts = result.tokenizer
    assert (facts.bos_token, facts.eos_token, facts.pad_token) == ("<|begin|>", "<|end|>", None)
    assert facts.chat_template == "{{ messages }}"


def test_an_id_beyond_the_vocabulary_is_named_with_its_position(volume: Path) -> None:
    size = sentencepiece_of(MINIATURE / "llama" / "tokenizer.model").vocab_size()
    with pytest.raises(InvalidRequest) as caught:
        run(volume, "base", token_ids=[[1], [5, size]])
    assert (
        f"token_ids[1] has {size} at position 1, and the tokenizer has {size} tokens." == caught.value.message
    )


@pytest.mark.parametrize(
    ("model", "adapters", "error", "words"),
    [
        ("gguf", [], UnreadableFile, "ends at 4 bytes"),
        (ADAPTERS[0], [], WrongModelKind, "'adapter'"),
        ("bare", [], VocabularyMismatch, "no tokenizer"),
        ("missing", [], ModelNotFound, "missing"),
        ("tokenizer", ADAPTERS, InvalidRequest, "takes no adapters"),
        ("base", ADAPTERS[::-1], GraftwerkError, ADAPTERS[0]),
    ],
)
def test_a_model_without_a_fitting_tokenizer_is_refused_before_the_job(
    volume: Path, model: str, adapters: list[str], error: type[GraftwerkError], words: str
) -> None:
    fields = {"kind": "tokenize", "model": model, "adapters": adapters, "texts": ["x"]}
    with pytest.raises(error) as caught:
        preflight(TokenizeRequest.model_validate(fields), ModelStore(volume), ())
    assert words in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "exactly one"),
        ({"texts": ["x"], "token_ids": [[1]]}, "exactly one"),
        ({"texts": ["x" * 900_000] * 3}, "2700000 characters"),
        ({"token_ids": [[7] * 1001] * 1000}, "1001000 ids"),
        ({"token_ids": [[-1]]}, "greater than or equal to 0"),
    ],
)
def test_a_request_has_one_input_within_the_limits(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TokenizeRequest.model_validate({"kind": "tokenize", "model": "m", **fields})


def test_a_long_request_takes_several_steps(volume: Path) -> None:
    run(volume, "base", texts=["x"])  # the tokenizer is loaded from here on
    request = TokenizeRequest(kind="tokenize", model="base", texts=["a b " * 15_000] * 4)
    session = open_session(request, job_context(volume))
    steps = 0
    while not session.done:
        session.step()
        steps += 1
    assert steps == 2  # 60,000 characters each, 100,000 end a step


TEMPLATE = (
    "{% for tool in tools or [] %}<|begin|>{{ tool | tojson }}<tool_call>{% endfor %}"
    "{% for m in messages %}<|begin|>{{ m.role }} {{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant {% if quick %}now {% endif %}{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "two spaces", "parameters": {"type": "object"}},
}
CONVERSATION = [{"role": "system", "content": "Count."}, {"role": "user", "content": "中国 two"}]


@pytest.fixture(scope="module")
def chat(volume: Path) -> Path:
    """The byte-level tokenizer with a chat template that takes tools."""
    shutil.copytree(volume / "bytes", volume / "chat")
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": TEMPLATE}
    (volume / "chat" / "tokenizer_config.json").write_text(json.dumps(config))
    return volume


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"add_generation_prompt": True}),
        ({"tools": [TOOL]}, {"add_generation_prompt": True, "tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "none"}, {"add_generation_prompt": True}),
        ({"chat_template_kwargs": {"quick": True}}, {"add_generation_prompt": True, "quick": True}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
    ],
)
def test_a_conversation_has_the_ids_of_transformers(
    chat: Path, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(chat / "chat" / "tokenizer.json"), chat_template=TEMPLATE
    )
    expected = tokenizer.apply_chat_template(CONVERSATION, return_dict=False, **options)
    result = run(chat, "chat", messages=CONVERSATION, return_pieces=True, **fields)
    assert result.token_ids == [expected]
    assert result.pieces == [tokenizer.convert_ids_to_tokens(expected)]
    assert (result.template, result.ignored) == ("model", None)


def test_an_answer_at_the_end_is_continued_or_closed(chat: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(chat / "chat" / "tokenizer.json"), chat_template=TEMPLATE
    )
    turns = [*CONVERSATION, {"role": "assistant", "content": "One"}]
    continued = tokenizer.apply_chat_template(turns, return_dict=False, continue_final_message=True)
    assert run(chat, "chat", messages=turns).token_ids == [continued]
    closed = tokenizer.apply_chat_template(turns, return_dict=False, add_generation_prompt=False)
    assert run(chat, "chat", messages=turns, add_generation_prompt=False).token_ids == [closed]


def test_a_model_without_a_template_of_its_own_has_ours(volume: Path) -> None:
    result = run(
        volume,
        "base",
        messages=CONVERSATION[1:],
        tools=[TOOL, {"type": "web_search"}],
        template="alpaca-chat",
    )
    text = sentencepiece_of(MINIATURE / "llama" / "tokenizer.model").decode((result.token_ids or [[]])[0])
    assert "中国 two" in text
    assert text.rstrip().endswith("### Response:")
    assert (result.template, result.ignored) == ("alpaca-chat", ["tools", "tools.web_search"])
    with pytest.raises(InvalidRequest, match="alpaca-chat always ends with the beginning of an answer"):
        run(volume, "base", messages=CONVERSATION[1:], template="alpaca-chat", add_generation_prompt=False)


def test_a_tokenizer_that_is_being_loaded_keeps_no_stream_waiting(
    volume: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(volume / "bytes", tmp_path / "slow")
    may_load = threading.Event()
    real = tokenizer_cache.load_tokenizer
    monkeypatch.setattr(tokenizer_cache, "load_tokenizer", lambda path: may_load.wait(60) and real(path))
    session = open_session(TokenizeRequest(kind="tokenize", model="slow", texts=["x"]), job_context(tmp_path))
    for _ in range(3):
        session.step()
    assert not session.done
    may_load.set()
    while not session.done:
        session.step()
    assert isinstance(session.result(), TokenizeResult)


def test_a_tokenizer_stays_loaded_until_its_files_change(
    volume: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(volume / "bytes", tmp_path / "own")
    loads: list[Path] = []
    real = tokenizer_cache.load_tokenizer
    monkeypatch.setattr(tokenizer_cache, "load_tokenizer", lambda path: loads.append(path) or real(path))
    for _ in range(2):
        run(tmp_path, "own", texts=["x"])
    assert len(loads) == 1
    config = {"bos_token": "<|end|>", "eos_token": "<|begin|>"}
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(config))
    assert run(tmp_path, "own", texts=["x"]).tokenizer.eos_token == "<|begin|>"
    assert len(loads) == 2


def test_the_job_waits_for_no_memory(volume: Path) -> None:
    request = TokenizeRequest(kind="tokenize", model="base", texts=["x"])
    models_ = ModelCache("cpu", 1, 1)
    assert MemoryWait(models_).check("job", request, ModelStore(volume)) is None
    assert preflight(request, ModelStore(volume), ()).peak_memory_bytes < 400 * 2**20
