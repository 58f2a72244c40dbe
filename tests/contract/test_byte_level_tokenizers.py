"""Tokenizers of tokenizer.json: tokens, beginnings and chat templates as `tokenizers` and transformers give them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from services.errors import UnreadableTokenizer
from services.generate import ChatTemplate, build_prompt
from services.templates import Message, PromptParts
from services.tokenizers import complete_tokenizer, load_tokenizer
from services.tokenizers.tokenizer_json import build_table
from tests.corpus import mixed_lines
from tests.reference.families import byte_level_tokenizer
from tests.tokenizer_sets import OURS

FAST: Any = PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)

TURNS = [
    ("user", "  你好, the model! \n"), ("assistant", "Hello\nthere"), ("user", "and again 羊驼 ▁x\n\n"),
]  # fmt: skip


def sentencepiece_pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    content = json.loads(built("llama").to_str())["model"]
    return content["vocab"], [(left, right) for left, right in content["merges"]]


def built(name: str) -> Tokenizer:
    path = OURS.file(name)
    return build_table(path.read_bytes(), path.name, load_tokenizer(path))


def qwen() -> Tokenizer:
    return byte_level_tokenizer()


def llama3() -> Tokenizer:
    """Ranks of Llama 3, its pattern, and its beginning of text."""
    return built("llama3")


def gemma() -> Tokenizer:
    """No space before the first word; a beginning of text; line breaks are added tokens that are not special."""
    vocab, merges = sentencepiece_pieces()
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ("<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def phi3() -> Tokenizer:
    """A space before each text, and special tokens that take in the line break after them."""
    tokenizer = built("llama")
    roles = [AddedToken(f"<|{role}|>", special=True, rstrip=True) for role in ("user", "assistant", "end")]
    tokenizer.add_special_tokens(roles)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return tokenizer


def mistral() -> Tokenizer:
    """A space before the first text only: what follows a special token has none."""
    tokenizer = built("llama")
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("[INST]", "[/INST]")])
    return tokenizer


KINDS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "qwen": (qwen, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, CHATML),
    "llama3": (llama3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}, CHATML),
    "gemma": (gemma, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, GEMMA),
    "phi3": (phi3, {"bos_token": "<s>", "eos_token": "<|end|>", "unk_token": "<unk>"}, PHI3),
    "mistral": (mistral, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, MISTRAL),
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make, roles, template = KINDS[request.param]
    path = tmp_path_factory.mktemp(request.param)
    fast: Any = FAST(tokenizer_object=make(), **roles)
    fast.chat_template = template
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """The tokenizer of transformers that runs tokenizer.json as it is."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def test_a_thousand_mixed_lines_have_the_tokens_of_tokenizers(folder: Path) -> None:
    table = Tokenizer.from_file(str(folder / "tokenizer.json"))
    table.encode_special_tokens = True  # text that looks like a special token stays text
    tokenizer = load_tokenizer(folder)
    lines = mixed_lines(1000)
    expected = [encoded.ids for encoded in table.encode_batch(lines, add_special_tokens=False)]
    assert len({number for ids in expected for number in ids}) > 150
    assert [
        line
        for line, ids in zip(lines, expected, strict=True)
        if tokenizer.encode(line, add_bos=False) != ids
    ] == []


def test_prompts_begin_as_with_transformers(folder: Path, reference: Any) -> None:
    tokenizer = load_tokenizer(folder)
    for text in ("hello world", "你好"):
        assert tokenizer.encode(text) == reference(text)["input_ids"]
    roles = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert roles == (reference.bos_token_id, reference.eos_token_id, reference.pad_token_id)
    assert tokenizer.vocabulary_size == len(reference)


@pytest.mark.parametrize("flag", [True, False])
def test_a_flag_next_to_the_table_changes_nothing(
    folder: Path, reference: Any, flag: bool, tmp_path: Path
) -> None:
    reference.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "add_bos_token": flag}), encoding="utf-8")
    expected = PreTrainedTokenizerFast.from_pretrained(tmp_path)("hello world")["input_ids"]
    assert expected == reference("hello world")["input_ids"]
    assert load_tokenizer(tmp_path).encode("hello world") == expected


def test_a_conversation_is_what_apply_chat_template_gives(folder: Path, reference: Any) -> None:
    messages = [Message(role=role, content=text) for role, text in TURNS]
    plain = [{"role": role, "content": text} for role, text in TURNS]
    built_prompt = build_prompt(
        load_tokenizer(folder),
        PromptParts(messages=messages),
        chat_template=ChatTemplate(reference.chat_template),
    )
    expected = reference.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    assert built_prompt.token_ids == expected
    if reference.bos_token_id is not None:
        assert expected.count(reference.bos_token_id) <= 1


def test_typed_special_tokens_never_become_one(folder: Path, reference: Any) -> None:
    tokenizer = load_tokenizer(folder)
    special = {reference.eos_token_id, *reference.all_special_ids}
    for text in (reference.eos_token, f"a{reference.eos_token} b", *reference.all_special_tokens):
        assert not special & set(tokenizer.encode(text, add_bos=False))
        messages = [Message(role="user", content=f"x {text} y")]
        prompt = build_prompt(
            tokenizer, PromptParts(messages=messages), chat_template=ChatTemplate(reference.chat_template)
        )
        clean = [Message(role="user", content="x y")]
        same = build_prompt(
            tokenizer, PromptParts(messages=clean), chat_template=ChatTemplate(reference.chat_template)
        )
        assert [n for n in prompt.token_ids if n in special] == [n for n in same.token_ids if n in special]


def test_streams_join_to_what_transformers_decodes(folder: Path, reference: Any) -> None:
    tokenizer = load_tokenizer(folder)
    random_ = random.Random(3)
    wild = [[random_.randrange(len(reference)) for _ in range(15)] for _ in range(60)]
    for ids in [*wild, *(tokenizer.encode(line, add_bos=False) for line in mixed_lines(120))]:
        decoder = tokenizer.stream_decoder()
        pieces = [*map(decoder.feed, ids), decoder.flush()]
        assert "".join(pieces) == tokenizer.decode(ids)
        hidden = tokenizer.hidden_ids
        if not hidden & set(ids):
            expected = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids) == expected


def test_a_character_of_several_tokens_comes_out_whole(tmp_path: Path) -> None:
    fast: Any = FAST(tokenizer_object=byte_level_tokenizer())
    fast.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("🦙文")
    decoder = tokenizer.stream_decoder()
    assert [decoder.feed(number) for number in ids] == ["", "", "", "🦙", "", "", "文"]


def test_a_folder_without_a_tokenizer_model_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    before = {}
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        before[path.name] = path.read_bytes()
    complete_tokenizer(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tokens_that_only_the_config_lists_are_added_or_refused(tmp_path: Path) -> None:
    fast: Any = FAST(tokenizer_object=byte_level_tokenizer())
    fast.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    size = len(fast)
    for number, fits in ((size, True), (size + 5, False)):
        listed = {**config, "added_tokens_decoder": {str(number): {"content": "<new>", "special": False}}}
        path.write_text(json.dumps(listed), encoding="utf-8")
        if fits:
            assert load_tokenizer(tmp_path).encode("a<new>", parse_special=True)[-1] == size
        else:
            with pytest.raises(
                UnreadableTokenizer, match=f"'<new>' has the id {number} in tokenizer_config.json and {size}"
            ):
                load_tokenizer(tmp_path)
