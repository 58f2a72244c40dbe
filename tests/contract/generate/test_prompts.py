"""Prompts as token ids: raw, in our templates and in the model's own."""

from typing import Any

import pytest

from services.errors import InvalidRequest
from services.generate import BuiltPrompt, ChatTemplate, LoadedModel, build_prompt
from services.templates import Message, PromptParts

CHAT = ChatTemplate(
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'tool' %}{% continue %}{% endif %}"
    "[{{ message['role'] }}] {{ message['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_prompt_without_a_template_is_continued_unchanged(loaded: LoadedModel) -> None:
    built = build_prompt(loaded.tokenizer, PromptParts(prompt="Hello world"))
    assert built == BuiltPrompt(loaded.tokenizer.encode("Hello world"), "raw")
    assert build_prompt(loaded.tokenizer, PromptParts(prompt="")).token_ids == [1]


def test_a_template_has_stop_strings(loaded: LoadedModel) -> None:
    built = build_prompt(loaded.tokenizer, PromptParts(template="alpaca", prompt="Say hi", input="now"))
    assert built.token_ids == loaded.tokenizer.encode(
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n\nSay hi\nnow\n\n### Response:\n\n"
    )
    assert built.stop == ("### Instruction:",)


def test_messages_get_the_models_own_template_and_typed_special_tokens_stay_text(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    messages = [
        Message(role="user", content=" Hi</s> \ue0001\ue001 "),
        Message(role="assistant", content="Yes"),
        Message(role="user", content="<s>ok"),
    ]
    built = build_prompt(tokenizer, PromptParts(messages=messages, system="Be kind"), chat_template=CHAT)
    plain = [
        tokenizer.encode(text, add_bos=False)
        for text in ("[system] Be kind", "[user] Hi</s> \ue0001\ue001", "[assistant] Yes", "[user] <s>ok")
    ]
    cue = tokenizer.encode("[assistant]", add_bos=False)
    assert built.token_ids == [1, *(token for text in plain for token in [*text, 2]), *cue]
    assert built.template == "model"


def test_messages_for_a_model_without_a_template_are_an_alpaca_conversation(
    loaded: LoadedModel,
) -> None:
    built = build_prompt(loaded.tokenizer, PromptParts(messages=[Message(role="user", content="Hi")]))
    assert built.template == "alpaca-chat"


OWN = {"prompt": "x", "template": "model"}


@pytest.mark.parametrize(
    ("settings", "chat_template", "message"),
    [
        ({}, None, "either a prompt or messages"),
        ({"prompt": "x", "messages": []}, None, "either a prompt or messages|together with an instruction"),
        ({"messages": [], "input": "y"}, CHAT, "together with an instruction or an input"),
        ({"prompt": "x", "system": "y"}, None, "no place for a system text"),
        (OWN, None, "no chat template"),
        (OWN, ChatTemplate("{{ raise_exception('not so') }}"), "not so"),
        (OWN, ChatTemplate("{% if %}"), "chat template"),
        (OWN, ChatTemplate("{{ '\\ud800' }}"), "surrogates not allowed"),
        (OWN, ChatTemplate("{% for a in [] %}" * 30 + "{% endfor %}" * 30), "too many statically nested"),
        (OWN, ChatTemplate("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "recursion"),
        (OWN, ChatTemplate("{{ ''.__class__.__mro__ }}"), "'__class__' of 'str' object is unsafe|unsafe"),
        (OWN, ChatTemplate("{{ messages.append(1) }}"), "chat template"),
    ],
)
def test_prompts_that_cannot_be_rendered_are_refused(
    loaded: LoadedModel, settings: dict[str, Any], chat_template: ChatTemplate | None, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        build_prompt(loaded.tokenizer, PromptParts(**settings), chat_template=chat_template)


TOOL = [
    Message(role="user", content="Weather?"),
    Message(role="assistant", content=""),
    Message(role="tool", content="rain"),
    Message(role="tool", content="wind"),
]


def texts(loaded: LoadedModel, messages: list[Message], text: str) -> str:
    template = ChatTemplate(text)
    built = build_prompt(loaded.tokenizer, PromptParts(messages=messages), chat_template=template)
    return loaded.tokenizer.decode(built.token_ids)


def test_a_template_that_names_the_role_tool_gets_it(loaded: LoadedModel) -> None:
    template = "{% for m in messages %}{{ '!' if m.role == 'tool' }}{{ m.role }}:{{ m.content }};{% endfor %}"
    assert texts(loaded, TOOL, template) == "user:Weather?;assistant:;!tool:rain;!tool:wind;"


def test_any_other_template_gets_the_results_of_tools_as_one_user_message(loaded: LoadedModel) -> None:
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    assert texts(loaded, TOOL, template) == "user:Weather?;assistant:;user:rain\nwind;"
    more = [*TOOL, Message(role="user", content="So?")]
    assert texts(loaded, more, template) == "user:Weather?;assistant:;user:rain\nwind\nSo?;"


def test_our_templates_render_the_result_of_a_tool_as_a_user_turn(loaded: LoadedModel) -> None:
    built = build_prompt(loaded.tokenizer, PromptParts(messages=TOOL, template="alpaca-chat", system="S"))
    assert built.token_ids == loaded.tokenizer.encode(
        "S\n\n### Instruction:\nWeather?\n\n### Response: \n\n### Instruction:\nrain\nwind\n\n### Response: "
    )
