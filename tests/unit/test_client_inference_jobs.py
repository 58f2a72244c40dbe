"""Commands for jobs that run a model: requests, prompts and texts, outputs."""

import json
from typing import Any

import pytest

from tests.client_service import Run, Service, generated


def test_generate_sends_prompts_template_and_sampling(service: Service, run: Run) -> None:
    service.result = generated({"prompt": "一", "text": "甲"}, {"prompt": "二", "text": "乙"})
    options = [
        "--template",
        "alpaca",
        "--system",
        "s",
        "--input",
        "i",
        "--greedy",
        "--seed",
        "0",
        "--stop",
        "x",
        "--stop",
        "y",
        "--max-new-tokens",
        "5",
    ]
    result = run("generate", "m", "-p", "一", "--prompt", "二", "-a", "p,q", *options)
    assert service.body == {
        "kind": "generate",
        "model": "m",
        "adapters": ["p", "q"],
        "prompts": ["一", "二"],
        "template": "alpaca",
        "system": "s",
        "input": "i",
        "sampling": {"do_sample": False, "seed": 0, "stop": ["x", "y"], "max_new_tokens": 5},
    }
    assert result.stdout == "一\n甲\n二\n乙\n"


def test_generate_reads_its_prompt_from_stdin_and_prints_the_text_alone(service: Service, run: Run) -> None:
    service.result = generated({"text": "[red]" + "long " * 100})
    result = run("generate", "m", input="two\nlines\n")
    assert service.body == {"kind": "generate", "model": "m", "prompt": "two\nlines"}
    assert result.stdout == "[red]" + "long " * 100 + "\n"


def test_generate_reads_a_file_of_prompts(service: Service, run: Run, tmp_path: Any) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n二\n", encoding="utf-8")
    run("generate", "m", "--prompts-file", str(file))
    assert service.body["prompts"] == ["one", "二"]


def test_a_file_that_is_not_utf_8_is_a_usage_error(service: Service, run: Run, tmp_path: Any) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("中文".encode("gbk"))
    result = run("generate", "m", "--prompts-file", str(file))
    assert result.exit_code == 2
    assert "is not UTF-8" in result.stderr


def test_a_prompts_file_on_the_volume_is_left_to_the_service(service: Service, run: Run) -> None:
    run("generate", "m", "--prompts-file", "incoming/questions.json")
    assert service.body["prompts_file"] == "incoming/questions.json"


@pytest.mark.parametrize(("name", "written"), [("a.json", "predictions of it"), ("a.jsonl", "lines of it")])
def test_the_outputs_for_a_file_on_the_volume_are_saved(
    service: Service, run: Run, tmp_path: Any, name: str, written: str
) -> None:
    service.result = generated({"text": "not shown"}, results_file="results/x.jsonl", answered=4000)
    result = run("generate", "m", "--prompts-file", "incoming/q.txt", "--output", str(tmp_path / name))
    assert result.exit_code == 0
    assert (tmp_path / name).read_text() == written
    assert "4,000" in result.stdout
    assert "not shown" not in result.stdout


def test_the_outputs_for_prompts_on_the_command_line_are_saved_in_the_same_form(
    service: Service, run: Run, tmp_path: Any
) -> None:
    failed = {"prompt": "二", "error": {"code": "c", "message": "too long", "hint": "h"}}
    service.result = generated({"prompt": "一", "text": "甲"}, failed)
    result = run("generate", "m", "-p", "一", "-p", "二", "-o", str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [
        {"Input": "一", "Output": "甲"},
        {"Input": "二", "Output": None},
    ]
    assert "too long" in result.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["-p", "x", "-o", "a.jsonl"],
        ["-p", "x", "-o", "missing/a.json"],
        ["-p", "x", "-o", "a.json", "--no-wait"],
    ],
)
def test_an_output_that_could_not_be_written_is_a_usage_error(
    service: Service, run: Run, options: list[str]
) -> None:
    assert run("generate", "m", *options).exit_code == 2
    assert service.seen == []


def test_a_local_file_of_json_is_a_usage_error(service: Service, run: Run, tmp_path: Any) -> None:
    (tmp_path / "q.jsonl").write_text('{"prompt": "a"}')
    result = run("generate", "m", "--prompts-file", str(tmp_path / "q.jsonl"))
    assert result.exit_code == 2
    assert "incoming/" in result.stderr


def test_generate_without_any_prompt_is_a_usage_error(service: Service, run: Run) -> None:
    assert run("generate", "m", input="").exit_code == 2
    assert service.seen == []


def test_compare_sends_its_variants_and_shows_the_first_difference(service: Service, run: Run) -> None:
    output = {"prompt": "p", "text": "甲乙"}
    service.result = {
        "seed": 3,
        "variants": [{"label": "base", "model": "b"}, {"label": "b+zh", "model": "b"}],
        "comparisons": [
            {
                "prompt": "p",
                "outputs": [output, output | {"text": "甲丙"}],
                "differences": [{"variants": ["base", "b+zh"], "token": 2, "character": 1}],
            }
        ],
        "pairs": [{"variants": ["base", "b+zh"], "equal": 0, "compared": 1}],
    }
    options = ["-p", "p", "--quantization", "8bit", "--seed", "3", "--template", "alpaca"]
    result = run("compare", "base=b", "b+zh@0.5+al", *options)
    assert service.body == {
        "kind": "compare",
        "variants": [
            {"label": "base", "model": "b", "quantization": "8bit"},
            {"model": "b", "adapters": [{"name": "zh", "scale": 0.5}, "al"], "quantization": "8bit"},
        ],
        "template": "alpaca",
        "sampling": {"seed": 3},
        "prompt": "p",
    }
    assert result.stdout.splitlines() == [
        "p",
        "base:",
        "甲乙",
        "b+zh:",
        "甲丙",
        "base ≠ b+zh from token 2, character 1 on",
        "base and b+zh: 0 of 1 outputs equal",
        "seed 3",
    ]


def test_compare_sends_tools_and_shows_calls(service: Service, run: Run, tmp_path: Any) -> None:
    call = {"id": "1", "name": "weather", "arguments": '{"city": "Bern"}'}
    service.result = {
        "seed": 3,
        "variants": [{"label": "a", "model": "a"}, {"label": "b", "model": "b", "ignored": ["tools"]}],
        "comparisons": [
            {
                "prompt": "p",
                "outputs": [
                    {"prompt": "p", "text": "", "tool_calls": [call]},
                    {"prompt": "p", "text": "Rain."},
                ],
                "differences": [{"variants": ["a", "b"], "token": 0, "character": 0}],
            }
        ],
        "pairs": [{"variants": ["a", "b"], "equal": 0, "compared": 1}],
    }
    tools = [{"type": "function", "function": {"name": "weather"}}]
    (tmp_path / "tools.json").write_text(json.dumps(tools))
    options = ["--tools", str(tmp_path / "tools.json"), "--tool-choice", "weather"]
    result = run(
        "compare", "a", "b", "-p", "p", *options, "--chat-template-kwargs", '{"enable_thinking": false}'
    )
    assert service.body["tools"] == tools
    assert service.body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert service.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert result.stdout.splitlines()[1:5] == ["a:", 'weather({"city": "Bern"})', "b:", "Rain."]


def test_perplexity_sends_a_local_text_and_its_options(service: Service, run: Run, tmp_path: Any) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one\n二\n", encoding="utf-8")
    service.result = {"perplexity": 12.5, "tokens": 7}
    options = ["-a", "p,q@0.5", "--context", "512", "--stride", "256", "--rope-alpha", "2"]
    result = run("perplexity", "m", "--file", str(file), *options)
    assert service.body == {
        "kind": "perplexity",
        "model": "m",
        "adapters": ["p", {"name": "q", "scale": 0.5}],
        "context": 512,
        "stride": 256,
        "rope_alpha": 2.0,
        "text": "one\n二\n",
    }
    assert "12.5" in result.stdout


def test_perplexity_leaves_a_file_of_the_volume_to_the_service(service: Service, run: Run) -> None:
    run("perplexity", "m", "--file", "incoming/text.txt")
    assert service.body == {"kind": "perplexity", "model": "m", "text_file": "incoming/text.txt"}


def test_a_text_too_long_to_send_is_a_usage_error(service: Service, run: Run, tmp_path: Any) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a" * 1_000_001, encoding="utf-8")
    result = run("perplexity", "m", "--file", str(file))
    assert result.exit_code == 2
    assert "incoming/" in result.stderr
    assert service.seen == []


@pytest.mark.parametrize(("texts", "typed"), [(["一", "b c"], None), ([], "一\n\nb c\n")])
def test_embed_sends_its_texts_and_prints_a_vector_per_line(
    service: Service, run: Run, texts: list[str], typed: str | None
) -> None:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    figures = {"seconds": 1.0, "device": "cpu", "dtype": "float32"}
    service.result = {"embeddings": [[0.5, 0.25], [1.0, 0.0]], "usage": usage, **figures}
    result = run("embed", "m", *texts, "-a", "p", input=typed)
    assert service.body == {"kind": "embed", "model": "m", "adapters": ["p"], "inputs": ["一", "b c"]}
    assert result.stdout == "[0.5, 0.25]\n[1.0, 0.0]\n"


FACTS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": None,
    "vocabulary_size": 9,
    "chat_template": None,
}


@pytest.mark.parametrize(("texts", "typed"), [(["一", "b [c]"], None), ([], "一\n\nb [c]\n")])
def test_tokenize_sends_its_texts_and_prints_a_list_of_ids_per_line(
    service: Service, run: Run, texts: list[str], typed: str | None
) -> None:
    service.result = {"token_ids": [[1, 5], [1]], "tokenizer": FACTS}
    result = run("tokenize", "m", *texts, "-a", "p", "--no-special-tokens", "--parse-special", input=typed)
    assert service.body == {
        "kind": "tokenize",
        "model": "m",
        "adapters": ["p"],
        "texts": ["一", "b [c]"],
        "add_special_tokens": False,
        "parse_special": True,
    }
    assert result.stdout == "[1, 5]\n[1]\n"


def test_tokenize_prints_pieces_as_they_are_written(service: Service, run: Run) -> None:
    service.result = {"token_ids": [[1, 5]], "pieces": [["<s>", "▁中"]], "tokenizer": FACTS}
    result = run("tokenize", "m", "中", "--pieces")
    assert service.body == {"kind": "tokenize", "model": "m", "texts": ["中"], "return_pieces": True}
    assert result.stdout == '["<s>", "▁中"]\n'


def test_tokenize_turns_ids_into_texts(service: Service, run: Run) -> None:
    service.result = {"texts": ["[bold]中", "x"], "tokenizer": FACTS}
    result = run("tokenize", "m", "--token-ids", "1,15043", "--token-ids", "2 3")
    assert service.body == {"kind": "tokenize", "model": "m", "token_ids": [[1, 15043], [2, 3]]}
    assert result.stdout == "[bold]中\nx\n"


@pytest.mark.parametrize("words", [["text", "--token-ids", "1"], ["--token-ids", "1,x"]])
def test_tokenize_refuses_what_it_cannot_send(service: Service, run: Run, words: list[str]) -> None:
    assert run("tokenize", "m", *words).exit_code == 2
    assert service.seen == []
