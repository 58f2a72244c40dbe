"""Chat template and generation settings of made models, read by transformers itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from services.errors import InvalidRequest
from services.generate import ChatTemplate, build_prompt, load_model
from services.isolation.process import complete
from services.kinds import ANY_REQUEST
from services.kinds.generate import GenerateRequest
from services.models.manifest import read_manifest
from services.models.prompt_file import PromptEntry
from services.models.store import ModelStore
from services.templates import JINJA_NAMES, Message, PromptParts, render
from services.tokenizers import add_chat_template, complete_tokenizer, load_tokenizer
from tests.contract.gguf_models import field
from tests.contract.resume_child import make
from tests.job_context import job_context
from tests.reference.families import save_tokenizer
from tests.reference.huggingface_model import save_llama
from tests.reference.peft_merge import make_adapter
from tests.tokenizer_sets import OURS
from worker.inference.prompt_builder import PromptBuilder

USER = {"role": "user", "content": "Write a 'poem'\nabout \\ rain. "}
ANSWER = {"role": "assistant", "content": " Rain falls."}
CONVERSATIONS = {
    "one turn": [USER],
    "with system": [{"role": "system", "content": "Be brief."}, USER],
    "without a system text": [{"role": "system", "content": ""}, USER],
    "three turns": [USER, ANSWER, {"role": "user", "content": "再来一首"}],
    "neighbours of one role": [
        {"role": "system", "content": "Be kind."}, {"role": "system", "content": "And short."},
        USER, USER, ANSWER, ANSWER, {"role": "tool", "content": "42"}, USER,
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.model").write_bytes(OURS.file("llama").read_bytes())
    complete_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", JINJA_NAMES)
def test_transformers_gives_the_tokens_that_generate_gives(folder: Path, name: str) -> None:
    path = folder / "chat_template.jinja"
    path.unlink(missing_ok=True)
    add_chat_template(folder, name)
    tokenizer, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for title, conversation in CONVERSATIONS.items():
        messages = [Message.model_validate(turn) for turn in conversation]
        expected = build_prompt(ours, PromptParts(messages=messages, template=name)).token_ids
        for more in ({}, {"add_generation_prompt": True}):
            found = tokenizer.apply_chat_template(conversation, return_dict=False, **more)
            assert found == expected, title
        own = build_prompt(
            ours,
            PromptParts(messages=messages, template="model"),
            chat_template=ChatTemplate(path.read_text()),
        )
        assert own.token_ids == expected, title


LIKE_LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LIKE_QWEN_3 = (
    "{% for m in messages %}{{ m.role }}:\n{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n"
    "{{ m.content.lstrip('\n') }}{% else %}{{ m.content }}{% endif %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
BEGUN = ["My name is", "My name is  ", " 我是</s> ", "", "Hi"]


@pytest.mark.parametrize("text", BEGUN)
@pytest.mark.parametrize("template", [*JINJA_NAMES, LIKE_LLAMA_3, LIKE_QWEN_3])
def test_transformers_continues_the_same_tokens(folder: Path, template: str, text: str) -> None:
    path = folder / "chat_template.jinja"
    path.unlink(missing_ok=True)
    if template in JINJA_NAMES:
        add_chat_template(folder, template)
    else:
        path.write_text(template)
    tokenizer, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    turns = [("user", "Hi"), ("assistant", "Hello!"), ("user", "Who are you?"), ("assistant", text)]
    conversation = [{"role": role, "content": content} for role, content in turns]
    shown = tokenizer.apply_chat_template(conversation, continue_final_message=True, tokenize=False)
    messages = [Message.model_validate(turn) for turn in conversation]
    parts = PromptParts(messages=messages, template="model")
    found = build_prompt(ours, parts, chat_template=ChatTemplate(path.read_text()))
    if "</s>" not in text:  # typed special tokens stay text here
        expected = tokenizer.apply_chat_template(conversation, continue_final_message=True, return_dict=False)
        assert found.token_ids == expected
    assert ours.decode(found.token_ids, skip_special=False) == ours.decode(
        tokenizer(shown, add_special_tokens=False)["input_ids"], skip_special=False
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content[:2] }}{% endfor %}",
        "{{ messages[0].content }}",
    ],
)
def test_a_template_that_changes_the_last_message_cannot_continue_it(folder: Path, template: str) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello!")]
    messages = [Message.model_validate({"role": role, "content": content}) for role, content in turns]
    parts = PromptParts(messages=messages, template="model")
    with pytest.raises(InvalidRequest, match="cannot continue the assistant's last message"):
        build_prompt(load_tokenizer(folder), parts, chat_template=ChatTemplate(template))


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "chatml"])
def test_byte_level_tokenizers_give_the_same_tokens_too(tmp_path: Path, name: str) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    add_chat_template(tmp_path, name)
    tokenizer, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for title, conversation in CONVERSATIONS.items():
        messages = [Message.model_validate(turn) for turn in conversation]
        expected = build_prompt(ours, PromptParts(messages=messages, template=name)).token_ids
        assert tokenizer.apply_chat_template(conversation, return_dict=False) == expected, title


@pytest.mark.parametrize("name", JINJA_NAMES)
@pytest.mark.parametrize("roles", [["assistant", "user"], ["user", "system", "user"], ["user", "critic"]])
def test_a_conversation_that_generate_refuses_is_refused(folder: Path, name: str, roles: list[str]) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    add_chat_template(folder, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(Exception, match="take turns"):
        tokenizer.apply_chat_template([{"role": role, "content": "x"} for role in roles])


def test_a_tokenizer_without_a_first_token_gets_a_template_without_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(OURS.file("llama").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    complete_tokenizer(tmp_path)
    add_chat_template(tmp_path, "vicuna")
    tokenizer, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    expected = build_prompt(ours, PromptParts(prompt="Hi", template="vicuna")).token_ids
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=False) == expected
    assert expected[0] != tokenizer.bos_token_id


# ---- models -------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_llama(tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").unlink()
    make_adapter(tmp_path / "chinese-alpaca-lora", seed=3)
    return tmp_path


def merge(root: Path, **more: Any) -> Path:
    request = {"kind": "merge", "base": "base", "adapters": ["chinese-alpaca-lora"], "target": "made", **more}
    make(ANY_REQUEST.validate_python(request), job_context(root))
    return root / "made"


def rendered(segments: list[Any]) -> str:
    return "".join(segment.text for segment in segments)


def test_a_merge_gets_the_template_of_its_lineage(root: Path) -> None:
    made = merge(root)
    tokenizer = AutoTokenizer.from_pretrained(made)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<s>" + rendered(render("alpaca", instruction="Hi"))
    manifest = read_manifest(made)
    assert manifest is not None and "chat_template.jinja" in manifest.files


def test_a_gguf_file_gets_it_too(root: Path) -> None:
    made = merge(root, output_format="gguf")
    assert "### Instruction:" in field(made, "tokenizer.chat_template")


def test_a_conversation_with_a_made_model_has_the_stop_strings_of_its_template(root: Path) -> None:
    """By its lineage, or, for a copy that has lost its manifest and name, by the text of its template."""
    made = merge(root)
    shutil.copytree(made, root / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    for name in ("made", "copy"):
        request = GenerateRequest.model_validate({"kind": "generate", "model": name, "messages": [USER]})
        loaded = load_model(root / name)
        entry = PromptEntry.model_validate({"messages": [USER]})
        prompt, _ = complete(PromptBuilder(request, loaded, ModelStore(root)).build(entry))
        assert (prompt.template, prompt.stop) == ("alpaca", ("### Instruction:",))


@pytest.mark.parametrize("output_format", ["huggingface", "gguf"])
def test_an_own_template_is_passed_on_byte_for_byte(root: Path, output_format: str) -> None:
    own = "{# mine #}\r\n{{ messages[0]['content'] }}\n"
    (root / "base" / "chat_template.jinja").write_bytes(own.encode())
    made = merge(root, output_format=output_format)
    if output_format == "gguf":
        assert field(made, "tokenizer.chat_template") == own
    else:
        assert (made / "chat_template.jinja").read_bytes() == own.encode()


@pytest.mark.parametrize("output_format", ["huggingface", "gguf"])
def test_a_tokenizer_of_an_adapter_does_not_lose_the_bases_template(root: Path, output_format: str) -> None:
    config = {"chat_template": "{{ messages[0]['content'] }}"}
    (root / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = (root / "base" / "tokenizer.model").read_bytes()
    (root / "chinese-alpaca-lora" / "tokenizer.model").write_bytes(tokenizer)
    made = merge(root, output_format=output_format)
    if output_format == "gguf":
        assert field(made, "tokenizer.chat_template") == config["chat_template"]
    else:
        assert AutoTokenizer.from_pretrained(made).chat_template == config["chat_template"]


def test_templates_for_other_purposes_are_passed_on(root: Path) -> None:
    more = root / "base" / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("{{ documents }}")
    made = merge(root)
    assert (made / "additional_chat_templates" / "rag.jinja").read_text() == "{{ documents }}"
    manifest = read_manifest(made)
    assert manifest is not None and "additional_chat_templates/rag.jinja" in manifest.files


# ---- generation_config.json ---------------------------------------------------------------------------


def test_generation_settings_are_passed_on_byte_for_byte(root: Path) -> None:
    settings = {
        "temperature": 0.6, "top_p": 0.9, "do_sample": True, "bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0,
    }  # fmt: skip
    text = json.dumps(settings, indent=3)
    (root / "base" / "generation_config.json").write_text(text)
    made = merge(root)
    assert (made / "generation_config.json").read_text() == text
    assert GenerationConfig.from_pretrained(made).eos_token_id == [2, 7]


def test_missing_ids_are_added_to_generation_settings(root: Path) -> None:
    config = root / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token_id": 5}))
    (root / "base" / "generation_config.json").write_text('{"top_k": 20, "eos_token_id": 9}')
    found = json.loads((merge(root) / "generation_config.json").read_text())
    assert found == {"top_k": 20, "eos_token_id": 9, "bos_token_id": 1, "pad_token_id": 5}


def test_a_base_without_generation_settings_gets_its_ids(root: Path) -> None:
    found = json.loads((merge(root) / "generation_config.json").read_text())
    assert found == {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
