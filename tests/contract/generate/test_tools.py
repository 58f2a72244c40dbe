"""Tools and thinking: prompts against transformers' `apply_chat_template`, required calls against jsonschema."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from services.chat_output import OutputForm
from services.errors import PromptTooLong, UnsupportedOption
from services.generate import ChatTemplate, LoadedModel, TemplateOptions, build_prompt, load_model
from services.generate.sampler import Choice, Sampler
from services.kinds.compare import CompareRequest, CompareResult
from services.kinds.generate import GenerateRequest, GenerateResult, Output, TokenPiece
from services.models.store import ModelStore
from services.preflight import preflight
from services.templates import Message, PromptParts
from services.tokenizers import complete_tokenizer
from tests.contract.generate.engine_driver import VOCABULARY, Driver, run_job
from tests.job_context import FakeExecution
from worker.inference.token_stream import FLUSH_SECONDS

# Our own short versions of published templates: what they read of tools, calls and thinking is the same.
HERMES = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{%- for call in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{%- endfor %}{%- if m.role == 'tool' %} {{ m.name }}{% endif %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_3 = (
    HERMES.replace(
        "{{ m.content }}",
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}",
    )
    + "{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
OPENS_THINKING = HERMES + "{%- if add_generation_prompt %}<think>\n{% endif %}"
LLAMA_3 = (
    "{%- if tools is not none %}{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}"
    "{%- for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n"
    '{% if m.tool_calls %}{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}{% elif m.role == 'tool' %}{{ m.content | tojson }}{% else %}"
    "{{ m.content }}{% endif %}<|eot_id|>{% endfor %}"
    "{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)
MISTRAL = (
    "{%- if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{%- for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS] ["
    "{%- for call in m.tool_calls %}{{ {'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson }}"
    "{%- endfor %}]{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.tool_call_id }} {{ m.content }}{% else %}{{ m.content }}"
    "{%- endif %}{% endfor %}"
)
TEMPLATES = {"hermes": HERMES, "qwen3": QWEN_3, "llama3": LLAMA_3, "mistral": MISTRAL}
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|im_start|>", "<|im_end|>"]

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city, <|im_end|> <think>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Zürich"]}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {
    "type": "function",
    "function": {"name": "time", "parameters": {"type": "object", "maxProperties": 0}},
}
ARGUMENTS = {"city": "Bern", "days": 2}
CALL = {
    "id": "abc123def",
    "type": "function",
    "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)},
}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Hm."},
    {"role": "tool", "content": '[1, "two"]', "tool_call_id": "abc123def", "name": "weather"},
    {"role": "user", "content": "And tomorrow?"},
]


def as_objects(turn: dict[str, Any]) -> dict[str, Any]:
    """Returns a turn whose calls have their arguments as objects, the form that transformers documents."""
    calls = [
        {**call, "function": {"name": "weather", "arguments": ARGUMENTS}}
        for call in turn.get("tool_calls", [])
    ]
    return {**turn, "tool_calls": calls} if calls else turn


@pytest.fixture(scope="module")
def marked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The tiny LLaMA with the marks of templates as special tokens of its vocabulary, and a longer context."""
    copy = tmp_path_factory.mktemp("marked")
    (copy / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    complete_tokenizer(copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.save_pretrained(copy)
    torch.manual_seed(0)
    config: Any = LlamaConfig
    LlamaForCausalLM(
        config(
            vocab_size=VOCABULARY + len(MARKS), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
        )
    ).save_pretrained(copy)  # fmt: skip
    return load_model(copy)


def with_template(loaded: LoadedModel, template: str) -> LoadedModel:
    return replace(loaded, chat_template=ChatTemplate(template))


SAMPLING: dict[str, Any] = {
    "temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1, "max_new_tokens": 200, "seed": 1,
}  # fmt: skip


def generated(loaded: LoadedModel, **fields: Any) -> GenerateResult:
    body: dict[str, Any] = {
        "kind": "generate", "model": loaded.folder.name, "messages": CONVERSATION[:1],
        "sampling": SAMPLING,
    }  # fmt: skip
    result = run_job(loaded, GenerateRequest.model_validate(body | fields))
    assert isinstance(result, GenerateResult)
    return result


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [[], [WEATHER, TIME]], ids=["without tools", "with tools"])
def test_prompts_are_those_of_transformers(
    marked: LoadedModel, name: str, tools: list[dict[str, Any]]
) -> None:
    harmless = json.loads(json.dumps(tools).replace("<|im_end|> <think>", "please"))
    tokenizer = AutoTokenizer.from_pretrained(marked.folder)
    expected = tokenizer.apply_chat_template(
        list(map(as_objects, CONVERSATION)), tools=harmless or None, chat_template=TEMPLATES[name],
        add_generation_prompt=True, return_dict=False, enable_thinking=False,
    )  # fmt: skip
    found = build_prompt(
        marked.tokenizer,
        PromptParts(messages=[Message.model_validate(turn) for turn in CONVERSATION]),
        chat_template=ChatTemplate(TEMPLATES[name]),
        options=TemplateOptions(tools=harmless, variables={"enable_thinking": False}),
    )
    assert found.token_ids == expected


def test_marks_in_texts_of_tools_and_results_are_text(marked: LoadedModel) -> None:
    special = marked.tokenizer.special_tokens
    messages = [Message(role="user", content="<|im_end|>"), Message(role="tool", content="x", name="<think>")]
    parts = PromptParts(messages=messages)
    options = TemplateOptions(tools=[WEATHER], variables={"enable_thinking": False})
    prompt = build_prompt(marked.tokenizer, parts, chat_template=ChatTemplate(HERMES), options=options)
    assert prompt.token_ids.count(special["<|im_end|>"]) == 3, "one of the tools' turn, two of messages"
    assert special["<think>"] not in prompt.token_ids
    text = marked.tokenizer.decode(prompt.token_ids)
    assert "a city, <|im_end|> <think>" in text


def test_a_required_call_is_one_that_the_schema_admits(marked: LoadedModel) -> None:
    for name, template in TEMPLATES.items():
        loaded = with_template(marked, template)
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            result = generated(
                loaded,
                tools=[WEATHER, TIME],
                tool_choice=choice,
                chat_template_kwargs={"enable_thinking": False},
            )
            (output,) = result.outputs
            assert (output.finish_reason, output.text) == ("tool_calls", ""), name
            (call,) = output.tool_calls or []
            assert call.id
            if choice != "required":
                assert call.name == "weather"
            tool = {"weather": WEATHER, "time": TIME}[call.name]
            jsonschema.validate(json.loads(call.arguments), tool["function"]["parameters"])


def run_streamed(loaded: LoadedModel, **fields: Any) -> tuple[GenerateResult, list[TokenPiece]]:
    """Runs a job; returns its result and the pieces that it has published, with each token in one of its own."""
    body: dict[str, Any] = {"kind": "generate", "model": loaded.folder.name, "messages": CONVERSATION[:1]}
    request = GenerateRequest.model_validate(body | fields)
    driver = Driver(loaded, request)
    job = driver.add(request)
    execution = job.context.execution
    assert isinstance(execution, FakeExecution)

    def has_ended() -> bool:
        time.sleep(FLUSH_SECONDS)
        return job.result is not None or job.error is not None

    driver.run_until(has_ended)
    assert isinstance(job.result, GenerateResult), job.error
    return job.result, execution.pieces


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("limit", [200, 48])
def test_a_required_call_is_streamed_while_it_is_written(marked: LoadedModel, name: str, limit: int) -> None:
    result, pieces = run_streamed(
        with_template(marked, TEMPLATES[name]), tools=[WEATHER], tool_choice="required",
        chat_template_kwargs={"enable_thinking": False}, sampling={"max_new_tokens": limit, "seed": 1, "temperature": 1},
    )  # fmt: skip
    (output,) = result.outputs
    (call,) = output.tool_calls or []
    found = [part for piece in pieces for part in piece.tool_calls]
    assert len(found) >= 4
    assert {(part.index, part.id, part.name) for part in found} == {(0, call.id, "weather")}
    assert [part.offset for part in found] == [
        sum(len(part.arguments) for part in found[:at]) for at in range(len(found))
    ]
    assert "".join(part.arguments for part in found) == call.arguments
    assert "".join(piece.text for piece in pieces) == output.text == ""
    assert output.finish_reason == ("tool_calls" if limit == 200 else "length")
    if limit == 200:
        jsonschema.validate(json.loads(call.arguments), WEATHER["function"]["parameters"])
    else:
        assert call.arguments.startswith("{")
        assert not output.warnings


SCRIPTS = {
    "hermes": (HERMES, 'Hm.\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>', "Hm."),
    "llama 3": (LLAMA_3, '{"name": "time", "parameters": {}}', ""),
    "mistral": (MISTRAL, '[TOOL_CALLS][{"name": "time", "arguments": {"a": "]"}}', ""),
}


CALL_TEXT = ' {"city": "Zürich }", "days": [1, 2]}'
OFFERED_CALLS = {
    "hermes": (HERMES, f'So.\n<tool_call>\n{{"name": "weather", "arguments": {CALL_TEXT}}}\n</tool_call>', "So."),
    "llama 3": (LLAMA_3, f'{{"name": "weather", "parameters": {CALL_TEXT}}}', ""),
    "mistral": (MISTRAL, f'[TOOL_CALLS][{{"name": "weather", "arguments": {CALL_TEXT}}}]', ""),
    "mistral's newer form": (MISTRAL, f"[TOOL_CALLS]weather[ARGS]{CALL_TEXT}", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFERED_CALLS)
@pytest.mark.parametrize("is_whole", [True, False])
def test_an_offered_call_is_streamed_while_it_is_written(
    marked: LoadedModel, monkeypatch: pytest.MonkeyPatch, name: str, is_whole: bool
) -> None:
    """The tokens that the model chooses are a list here, which may end within the arguments."""
    template, text, answer = OFFERED_CALLS[name]
    written = CALL_TEXT.strip() if is_whole else CALL_TEXT.strip().partition("2")[0]
    text = text if is_whole else text[: text.index(written) + len(written)]
    token_ids = marked.tokenizer.encode(text, add_bos=False, parse_special=True)
    script = iter([*token_ids, 2])
    monkeypatch.setattr(Sampler, "choose", lambda *_: Choice(next(script)))
    result, pieces = run_streamed(
        with_template(marked, template), tools=[TIME, WEATHER], sampling={"max_new_tokens": 300}
    )
    (output,) = result.outputs
    (call,) = output.tool_calls or []
    found = [part for piece in pieces for part in piece.tool_calls]
    assert len(found) >= 6
    assert {(part.index, part.id, part.name) for part in found} == {(0, call.id, "weather")}
    assert "".join(part.arguments for part in found) == call.arguments == written
    assert "".join(piece.text for piece in pieces) == output.text == answer
    assert output.finish_reason == "tool_calls"
    if is_whole:
        assert not output.warnings
    else:
        (warning,) = output.warnings or []
        assert "begins a call of a tool and does not end as one" in warning


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("is_parallel", [True, False])
def test_an_output_ends_after_its_only_call(
    marked: LoadedModel, monkeypatch: pytest.MonkeyPatch, name: str, is_parallel: bool
) -> None:
    """A model that writes a call and then goes on for ever; which tokens it chooses is a list here."""
    template, text, answer = SCRIPTS[name]
    token_ids = marked.tokenizer.encode(text, add_bos=False, parse_special=True)
    more = marked.tokenizer.encode(" and more", add_bos=False)
    script = iter([*token_ids, *more * 20])
    monkeypatch.setattr(Sampler, "choose", lambda *_: Choice(next(script)))
    result = generated(
        with_template(marked, template), tools=[WEATHER, TIME], parallel_tool_calls=is_parallel, return_token_ids=True,
        sampling={"max_new_tokens": len(token_ids) + 10},
    )  # fmt: skip
    (output,) = result.outputs
    if is_parallel:
        assert (len(output.token_ids or []), output.finish_reason) == (len(token_ids) + 10, "length")
        return
    assert output.token_ids == token_ids
    assert (output.text, output.finish_reason) == (answer, "tool_calls")
    assert [call.name for call in output.tool_calls or []] == ["time"]


def test_text_that_opens_a_call_and_is_none_has_a_warning(
    marked: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'
    script = iter([*marked.tokenizer.encode(text, add_bos=False, parse_special=True), 2])
    monkeypatch.setattr(Sampler, "choose", lambda *_: Choice(next(script)))
    (output,) = generated(with_template(marked, HERMES), tools=[TIME]).outputs
    assert (output.text, output.tool_calls, output.finish_reason) == (text, None, "stop")
    assert output.warnings is not None
    assert output.warnings[0].startswith(
        'The text \'<tool_call>{"name": "rm", "arguments": {}}\' opens a call'
    )


def test_a_required_call_without_special_tokens_is_written_as_text(loaded: LoadedModel) -> None:
    model = with_template(loaded, "{{ tools | length }}<tool_call>{{ messages[0].content }}")
    result = generated(
        model,
        tools=[WEATHER],
        tool_choice="required",
        sampling={"max_new_tokens": 120, "seed": 3, "temperature": 1},
    )
    (call,) = result.outputs[0].tool_calls or []
    jsonschema.validate(json.loads(call.arguments), WEATHER["function"]["parameters"])


def test_a_form_begins_after_thinking_that_the_prompt_opened(marked: LoadedModel) -> None:
    loaded = with_template(marked, OPENS_THINKING)
    close = marked.tokenizer.special_tokens["</think>"]
    sampling = {"temperature": 1, "seed": 5, "max_new_tokens": 300, "logit_bias": {str(close): 6}}
    called = generated(loaded, tools=[WEATHER], tool_choice="required", sampling=sampling).outputs[0]
    assert called.reasoning
    assert called.tool_calls
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answered = generated(loaded, response_format=form, sampling=sampling).outputs[0]
    assert answered.reasoning
    jsonschema.validate(json.loads(answered.text or ""), schema)
    assert answered.usage is not None
    assert 0 < (answered.usage.reasoning_tokens or 0) < answered.usage.completion_tokens


def test_thinking_and_answer_together_are_the_whole_output(marked: LoadedModel) -> None:
    """The parts of an output of random tokens against the text of all of its tokens."""
    loaded = with_template(marked, OPENS_THINKING)
    special = marked.tokenizer.special_tokens
    bias = {str(special["</think>"]): 5}
    (output,) = generated(
        loaded,
        return_token_ids=True,
        sampling={"temperature": 1, "seed": 2, "max_new_tokens": 80, "logit_bias": bias},
    ).outputs
    token_ids = output.token_ids or []
    at = token_ids.index(special["</think>"])
    decode = marked.tokenizer.decode
    assert output.reasoning == decode(token_ids[:at]).strip()
    assert (
        "".join((output.text or "").split())
        == "".join(
            decode([i for i in token_ids[at + 1 :] if i != special["</think>"]])
            .replace("</think>", "")
            .split()
        )
        or special["</think>"] in token_ids[at + 1 :]
    )
    assert output.usage is not None
    assert output.usage.reasoning_tokens == at + 1


def test_tools_that_a_template_cannot_describe_are_left_out_and_named(loaded: LoadedModel) -> None:
    for template in ("{{ messages[0].content }}", "{{ tools }}{{ messages[0].content }}"):
        model = with_template(loaded, template)
        result = generated(model, tools=[WEATHER], sampling={"max_new_tokens": 2, "seed": 1})
        plain = generated(model, sampling={"max_new_tokens": 2, "seed": 1})
        assert (result.ignored, plain.ignored) == (["tools"], None)
        if template.startswith("{{ m"):
            assert result.outputs[0].text == plain.outputs[0].text
        with pytest.raises(UnsupportedOption, match="no form for tools that is known"):
            generated(model, tools=[WEATHER], tool_choice="required")
    result = generated(loaded, tools=[WEATHER], template="alpaca-chat", sampling={"max_new_tokens": 2})
    assert result.ignored == ["tools"]
    assert (
        generated(
            with_template(loaded, HERMES), tools=[WEATHER], tool_choice="none", sampling={"max_new_tokens": 2}
        ).ignored
        is None
    )


def compared(loaded: LoadedModel, *models: LoadedModel, **fields: Any) -> CompareResult:
    """Compares models of one volume; the first one is loaded already."""
    variants = [{"model": model.folder.name, "label": str(at)} for at, model in enumerate((loaded, *models))]
    body = {"kind": "compare", "variants": variants, "messages": CONVERSATION[:1], "sampling": SAMPLING}
    choice = {"kind": "generate", "model": loaded.folder.name, "prompt": "x"}
    driver = Driver(loaded, GenerateRequest.model_validate(choice))
    job = driver.add(CompareRequest.model_validate(body | fields))
    driver.run_until(lambda: job.result is not None or job.error is not None)
    assert isinstance(job.result, CompareResult), job.error
    return job.result


def test_variants_of_a_comparison_call_tools_as_in_jobs_of_their_own(
    marked: LoadedModel, loaded: LoadedModel
) -> None:
    """The second model has no chat template of its own: the tools are left out for it alone."""
    first = with_template(marked, HERMES)
    fields: dict[str, Any] = {"tools": [WEATHER, TIME], "sampling": SAMPLING | {"max_new_tokens": 20}}
    result = compared(first, loaded, **fields)
    assert [variant.ignored for variant in result.variants] == [None, ["tools"]]
    (comparison,) = result.comparisons
    for model, output in zip((first, loaded), comparison.outputs, strict=True):
        alone = generated(model, return_token_ids=True, exact=True, **fields)
        assert output.model_dump() == alone.outputs[0].model_dump()
    fields = {
        "tools": [WEATHER],
        "tool_choice": "required",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    result = compared(first, first, **fields)
    (alone,) = generated(first, return_token_ids=True, exact=True, **fields).outputs
    assert alone.tool_calls
    assert [output.tool_calls for output in result.comparisons[0].outputs] == [alone.tool_calls] * 2
    assert (result.pairs[0].equal, result.comparisons[0].differences[0].token) == (1, None)


def test_a_comparison_whose_call_no_template_can_describe_is_refused_by_name(
    marked: LoadedModel, tmp_path: Path
) -> None:
    for name in ("with", "without"):
        shutil.copytree(marked.folder, tmp_path / name)
    (tmp_path / "with" / "chat_template.jinja").write_text(HERMES)
    body: dict[str, Any] = {"kind": "compare", "prompt": "x", "tools": [WEATHER], "tool_choice": "required"}
    variants = [{"model": "with"}, {"model": "without"}]
    with pytest.raises(UnsupportedOption, match="the chat template of without has no form for tools"):
        preflight(CompareRequest.model_validate(body | {"variants": variants}), ModelStore(tmp_path), ())
    same = [{"model": "with"}, {"model": "with", "label": "again"}]
    plan = preflight(CompareRequest.model_validate(body | {"variants": same}), ModelStore(tmp_path), ())
    assert plan.kind == "compare"
    strict = {"variants": same, "sampling": {"stop": ["x"]}}
    with pytest.raises(ValueError, match="stop is not available with a required call"):
        CompareRequest.model_validate(body | strict)


def test_tools_of_other_types_are_left_out_and_named(marked: LoadedModel) -> None:
    loaded = with_template(marked, HERMES)
    other = {"type": "web_search", "search_context_size": "low"}
    sampling = {"max_new_tokens": 2, "seed": 1}
    result = generated(loaded, tools=[other, WEATHER], sampling=sampling, return_token_ids=True)
    alone = generated(loaded, tools=[WEATHER], sampling=sampling, return_token_ids=True)
    assert (result.ignored, alone.ignored) == (["tools.web_search"], None)
    assert result.outputs[0].prompt_token_ids == alone.outputs[0].prompt_token_ids
    nothing = generated(loaded, tools=[other], sampling=sampling)
    assert nothing.outputs[0].text == generated(loaded, sampling=sampling).outputs[0].text


def test_tools_that_do_not_fit_are_refused_with_both_sizes(loaded: LoadedModel) -> None:
    with pytest.raises(PromptTooLong, match=r"its 2 tools have \d{3} tokens; the model's context is 160\."):
        generated(with_template(loaded, HERMES), tools=[WEATHER, TIME], sampling={"max_new_tokens": 2})


def test_calls_have_the_same_ids_when_a_seed_is_repeated(marked: LoadedModel) -> None:
    loaded = with_template(marked, MISTRAL)
    calls = [
        generated(loaded, tools=[WEATHER], tool_choice="required").outputs[0].tool_calls for _ in range(2)
    ]
    assert calls[0] == calls[1]
    assert calls[0] is not None
    assert len(calls[0][0].id) == 9, "Mistral's templates take ids of nine characters"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_choice": "required"}, "tools has no function"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools has no function"),
        ({"tools": [WEATHER, WEATHER]}, "two functions of the same name: weather"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "not in tools"),
        ({"tools": [WEATHER], "tool_choice": "required", "guided_regex": "a"}, "leave response_format and guided_regex out"),
        ({"tools": [WEATHER], "tool_choice": "required", "sampling": {"stop": ["x"]}}, "stop is not available"),
        ({"chat_template_kwargs": {"messages": []}}, "cannot set messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "tool_calls belongs to messages of role assistant"),
    ],
)  # fmt: skip
def test_contradictions_are_named(fields: dict[str, Any], words: str) -> None:
    body: dict[str, Any] = {"kind": "generate", "model": "m", "messages": CONVERSATION[:1]}
    with pytest.raises(ValueError, match=words):
        GenerateRequest.model_validate(body | fields)


def test_a_job_shows_tools_as_they_were_sent() -> None:
    tools = [
        {"type": "function", "function": {"name": "now"}},
        {
            "type": "function",
            "function": {"name": "at", "description": "d", "parameters": {}, "strict": False},
        },
        {"type": "web_search", "size": 3},
    ]
    body = {"kind": "generate", "model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools}
    assert GenerateRequest.model_validate(body).model_dump(mode="json")["tools"] == tools


def test_a_plain_output_has_no_parts() -> None:
    assert OutputForm().is_plain
    assert "reasoning" not in Output(prompt="x", text="<think>").model_dump(exclude_unset=True)
