"""Requests as curl, Python and command: each text is run, and the request that it sends is compared with the one that it was made of.

Commands leave out defaults, so requests are compared as the service reads them.
"""

import json
import shlex
import subprocess
from typing import Any

import graftwerk
import pytest

from services.kinds import KINDS, parse_request
from tests.client_service import Run, Service
from tests.page_module import call, call_all

URL = "http://graft.example:8000"
HOSTILE = 'it\'s "quoted" $HOME `id` \\ 中文 😀\n-- ; true'

TARGET = {"target": "ab"}
MERGE = {"kind": "merge", "base": "llama", "adapters": ["a", {"name": "b", "scale": -0.5}], **TARGET}
REQUESTS: list[dict[str, Any]] = [
    *(kind.request.example["value"] for kind in KINDS.values()),
    MERGE,
    MERGE
    | {
        "output_format": "gguf", "dtype": "q4_k_m", "rounding": "once", "verify": False, "base_precision": "dequantized",
        "compare_precisions": True, "force": True, "imatrix": {"text_file": "incoming/it's a text.txt"},
    },
    MERGE | {"output_format": "meta", "ranks": 2, "dtype": None, "verify": True, "force": False, "adapters": ["a"]},
    MERGE | {"max_shard_size": "500MB", "after": ["11111111-2222-3333-4444-555555555555"]},
    {"kind": "convert", "source": "a", **TARGET, "instruct": True, "dtype": "float16"},
    {"kind": "convert", "source": "a", **TARGET, "output_format": "gguf", "measure": {"text_file": "incoming/x.txt"}},
    {"kind": "convert", "source": "a", **TARGET, "output_format": "gguf", "base": "llama"},
    {"kind": "import", "source": {"path": "incoming/llama"}, **TARGET, "sha256": {"a b.pth": "f" * 64}},
    {"kind": "import", "source": {"zip": "incoming/x.ZIP"}, **TARGET},
    {"kind": "import", "source": {"zip": "incoming/x.bin"}, **TARGET},
    {"kind": "import", "source": {"hub": "org/name", "revision": "refs/pr/1", "files": ["*Q4.gguf", "R*"]}, **TARGET},
    {"kind": "verify", "model": "m", "base": "llama", "adapters": ["a", "b"]},
    {"kind": "publish-to-hub", "model": "m", "repository": "org/name", "private": False},
    {"kind": "extend-tokenizer", "base": "a", "addition": "b", **TARGET, "pad_token": "[PAD]"},
    {"kind": "combine", "adapters": ["a", {"name": "b", "scale": 2}], **TARGET, "method": "dare", "seed": 0, "density": 0.25},
    {"kind": "generate", "model": "m", "prompt": HOSTILE, "system": "-v", "sampling": {"temperature": 0, "stop": ["\n", "--"]}},
    {"kind": "generate", "model": "m", "prompts": ["a", HOSTILE], "template": "alpaca", "sampling": {"do_sample": False}},
    {"kind": "generate", "model": "m", "prompts_file": "incoming/p.txt", "quantization": "4bit", "forward": True},
    {"kind": "compare", "prompt": "x", "variants": [{"model": "a", "rope_alpha": 2}, {"model": "a", "adapters": ["b"], "label": "its b", "rope_alpha": 2}]},
    {"kind": "embed", "model": "m", "adapters": ["a"], "inputs": ["-x", HOSTILE]},
    {"kind": "tokenize", "model": "m", "adapters": ["a"], "texts": ["-x", HOSTILE], "add_special_tokens": False, "return_pieces": True},
    {"kind": "tokenize", "model": "m", "token_ids": [[1, 15043], [2]], "parse_special": False},
    {"kind": "perplexity", "model": "m", "text_file": "incoming/x.txt", "context": 64, "stride": 32, "quantization": "8bit"},
]  # fmt: skip

WITHOUT_COMMAND: list[dict[str, Any]] = [
    MERGE | {"metadata": {"team": "a"}},
    MERGE | {"webhook": {"url": "https://example.org/hook"}},
    {"kind": "import", "source": {"upload": ["abc"]}, **TARGET},
    {"kind": "import", "source": {"path": "incoming/x.zip"}, **TARGET},
    {"kind": "generate", "model": "m", "messages": [{"role": "user", "content": "Hello"}]},
    {"kind": "generate", "model": "m", "prompts": ["one"]},
    {"kind": "generate", "model": "m", "prompt": "x", "sampling": {"typical_p": 0.5}},
    {"kind": "compare", "prompt": "x", "variants": [{"model": "a"}, {"model": "a", "quantization": "4bit"}]},
    {"kind": "perplexity", "model": "m", "text": HOSTILE},
    {"kind": "tomorrow", "model": "m"},
]


@pytest.fixture(scope="module")
def texts() -> list[dict[str, str | None]]:
    """The snippets of all requests, written by the page's own script."""
    options = {"url": URL, "needsKey": True}
    requests = [*REQUESTS, *WITHOUT_COMMAND]
    return call_all("snippets.js", [["snippets", request, options] for request in requests])


def is_same(sent: dict[str, Any], request: dict[str, Any]) -> bool:
    return sent == request or parse_request(sent) == parse_request(request)


@pytest.mark.parametrize("number", range(len(REQUESTS) + len(WITHOUT_COMMAND)))
def test_the_python_text_submits_the_request(
    texts: list[dict[str, str | None]], number: int, service: Service
) -> None:
    text = texts[number]["python"]
    assert text is not None
    exec(text, {})
    assert service.body == [*REQUESTS, *WITHOUT_COMMAND][number]
    assert service.seen[0].url.host == "graft.example"


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_the_command_submits_the_request(
    texts: list[dict[str, str | None]], number: int, service: Service, run: Run
) -> None:
    text = texts[number]["graftwerk"]
    assert text is not None
    program, *arguments = shlex.split(text)
    assert program == "graftwerk"
    result = run(*arguments)
    assert service.seen, result.output
    assert is_same(service.body, REQUESTS[number]), text
    assert service.seen[0].url.host == "graft.example"


@pytest.mark.parametrize("number", range(len(WITHOUT_COMMAND)))
def test_there_is_no_command_for_a_field_without_an_option(
    texts: list[dict[str, str | None]], number: int
) -> None:
    assert texts[len(REQUESTS) + number]["graftwerk"] is None


@pytest.mark.parametrize("number", range(len(REQUESTS) + len(WITHOUT_COMMAND)))
def test_the_shell_gives_curl_the_request_and_the_key(
    texts: list[dict[str, str | None]], number: int
) -> None:
    # a function of this name receives the words that the shell makes of the text
    script = f"curl() {{ printf '%s\\0' \"$@\"; }}\n{texts[number]['curl']}"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, check=True, env={"GRAFTWERK_API_KEY": "k1"}
    )
    words = done.stdout.decode().split("\0")[:-1]
    assert words[:3] == ["-X", "POST", f"{URL}/api/jobs"]
    assert words[3:8] == ["-H", "Authorization: Bearer k1", "-H", "Content-Type: application/json", "-d"]
    assert json.loads(words[8]) == [*REQUESTS, *WITHOUT_COMMAND][number]
    assert len(words) == 9


def test_the_commands_of_all_kinds_are_covered() -> None:
    assert {request["kind"] for request in REQUESTS} == set(KINDS)
    assert {name.replace("-", "_") for name in KINDS} - {"import"} <= set(dir(graftwerk.Client))


CHAIN = [
    {"kind": "convert", "source": "llama", "target": "llama-hf"},
    {"kind": "merge", "base": "llama-hf", "adapters": ["it's"], "target": "ab"},
    {"kind": "convert", "source": "ab", "target": "ab-q4"},
]


def test_curl_submits_each_job_of_a_chain_after_the_one_before_it() -> None:
    text = call("snippets.js", "chainSnippets", CHAIN, {"url": URL})["curl"]
    script = f"""number=0
uuidgen() {{ echo "id-$((number))"; }}
curl() {{ printf '%s\\0' "$@"; printf '\\1'; }}
{text.replace("=$(uuidgen)", "=$(uuidgen); number=$((number + 1))")}"""
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    calls = [sent.split("\0")[:-1] for sent in done.stdout.decode().split("\1")[:-1]]
    assert [words[:3] for words in calls] == [
        ["-X", "PUT", f"{URL}/api/jobs/id-0"],
        ["-X", "PUT", f"{URL}/api/jobs/id-1"],
        ["-X", "POST", f"{URL}/api/jobs"],
    ]
    assert [json.loads(words[-1]) for words in calls] == [
        CHAIN[0],
        {**CHAIN[1], "after": ["id-0"]},
        {**CHAIN[2], "after": ["id-1"]},
    ]


def test_python_and_command_run_a_chain_in_order(service: Service, run: Run) -> None:
    texts = call("snippets.js", "chainSnippets", CHAIN, {"url": URL})
    exec(texts["python"], {})
    bodies = [json.loads(request.content) for request in service.seen if request.method == "POST"]
    assert bodies == CHAIN
    service.seen.clear()
    for line in texts["graftwerk"].split(" &&\n"):
        assert run(*shlex.split(line)[1:]).exit_code == 0
    bodies = [json.loads(request.content) for request in service.seen if request.method == "POST"]
    assert bodies == CHAIN
