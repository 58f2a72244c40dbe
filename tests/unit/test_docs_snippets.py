"""Snippets in the documentation: JSON, YAML, Python and curl are parsed, and requests in them are valid requests of existing routes.

Snippets that are also run: `tests/e2e/test_docs_snippets.py`.
"""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from graftwerk import AsyncClient, Client, JobHandle
from graftwerk.chain_file import read_chain
from pydantic import BaseModel, TypeAdapter

from api.anthropic.body import MessagesBody
from api.openai.responses_api.body import ResponsesBody
from api.openai.schemas import ChatBody, CompletionBody, EmbeddingBody
from api.openai.tokenizer import DetokenizeBody, TokenizeBody
from api.responses import JobBody
from services.kinds import KINDS
from tests.api_client import client_of
from tests.doc_snippets import Block, all_blocks, shell_commands

NOT_CHECKED = {
    "js": "JavaScript: tests/e2e/test_uploads.py drives the same library",
    "nginx": "a configuration of another program",
    "text": "output, not input",
    "sh": "tests/unit/test_docs_commands.py",
    "": "tests/unit/test_docs_commands.py",
}
"""Languages that are not checked here, with the reason."""

OTHER_YAML = {"docs/operations.md", "docs/coming-from/mergekit.md", "docs/coming-from/llama-factory.md"}
"""Pages with YAML of other programs: it is only parsed."""

UUID = "0190f3c2-5b1e-4c7e-9a43-1f1d6f0a7c55"
VARIABLES = {"$URL": "", "$ID": UUID, "$DELIVERY": UUID, "<id>": UUID}
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatBody, "/v1/completions": CompletionBody, "/v1/embeddings": EmbeddingBody,
    "/tokenize": TokenizeBody, "/detokenize": DetokenizeBody, "/v1/messages": MessagesBody, "/v1/responses": ResponsesBody,
}  # fmt: skip
METHODS = {kind.replace("-", "_") if kind != "import" else "import_": kind for kind in KINDS}
JOB_BODY: TypeAdapter[Any] = TypeAdapter(JobBody)


def of(language: str) -> list[Any]:
    """The blocks of a language, as parameters of a test."""
    return [pytest.param(block, id=block.place) for block in all_blocks() if block.language == language]


def test_every_language_is_checked_or_named_with_a_reason() -> None:
    assert {block.language for block in all_blocks()} - {"json", "yaml", "python", "toml"} == set(NOT_CHECKED)


def json_values(text: str) -> Iterator[Any]:
    """Yields the JSON values of a block, which stand one below the other."""
    decoder = json.JSONDecoder()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:]


@pytest.mark.parametrize("block", of("toml"))
def test_a_toml_snippet_is_valid(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", of("json"))
def test_a_json_snippet_is_valid_and_so_is_its_request(block: Block) -> None:
    for value in json_values(block.text):
        if isinstance(value, dict) and "kind" in value and "status" not in value and "id" not in value:
            JOB_BODY.validate_python(value)


@pytest.mark.parametrize("block", of("yaml"))
def test_a_yaml_snippet_is_valid_and_so_are_its_jobs(block: Block, tmp_path: Path) -> None:
    found = yaml.safe_load(block.text)
    if block.page in OTHER_YAML or "jobs" not in found:
        return
    for job in found["jobs"]:
        source = tmp_path / str(job.get("source", ""))
        if source.suffix == ".zip":
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_bytes(b"")
        elif job["kind"] == "import":
            source.mkdir(parents=True, exist_ok=True)
            (source / "config.json").write_text("{}")
    file = tmp_path / "walk.yaml"
    file.write_text(block.text, encoding="utf-8")
    steps = read_chain(file)
    assert len(steps) == len(found["jobs"])
    for step in steps:
        request = step.request if step.upload is None else {**step.request, "source": {"upload": ["a" * 32]}}
        JOB_BODY.validate_python(request)


def calls(block: Block) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the method and the literal keyword arguments of each call of a client."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            target = node.func.value
            if isinstance(target, ast.Name) and target.id == "client":
                yield node.func.attr, {word.arg: _literal(word.value) for word in node.keywords if word.arg}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return "a-value"


@pytest.mark.parametrize("block", of("python"))
def test_a_python_snippet_calls_what_there_is_with_valid_requests(block: Block) -> None:
    found = list(calls(block))
    if "from openai import" in block.text or "tusclient" in block.text:
        return
    for method, arguments in found:
        assert hasattr(Client, method) or hasattr(JobHandle, method), method
        assert hasattr(AsyncClient, method) or hasattr(JobHandle, method), method
        if method in METHODS:
            JOB_BODY.validate_python({"kind": METHODS[method], **arguments})


def curls() -> Iterator[tuple[Block, list[str]]]:
    for block in all_blocks():
        if block.language in ("sh", ""):
            for words in shell_commands(block):
                if words[0] == "curl":
                    yield block, words[1:]


CURLS = [pytest.param(block, words, id=f"{block.place} {' '.join(words)[:50]}") for block, words in curls()]


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Methods and paths of the OpenAPI document, and those of tus and of the pages."""
    document = client_of(tmp_path_factory.mktemp("models")).get("/openapi.json").get_json()
    found = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    return found | {("HEAD", "/api/uploads/{upload_id}")}


def option(words: list[str], *names: str) -> str | None:
    """Returns the value of an option of curl."""
    return next((words[index + 1] for index, word in enumerate(words) if word in names), None)


@pytest.mark.parametrize(("block", "words"), CURLS)
def test_a_curl_command_asks_an_existing_route_with_a_valid_body(
    block: Block, words: list[str], routes: set[tuple[str, str]]
) -> None:
    (url,) = [word for word in words if word.startswith(("$URL", "http://127.0.0.1:8000"))]
    path = re.sub(r"^http://127\.0\.0\.1:8000|\?.*", "", url)
    for variable, value in VARIABLES.items():
        path = path.replace(variable, value)
    data = option(words, "-d", "--data-binary")
    method = option(words, "-X") or ("HEAD" if "-I" in words else "POST" if data else "GET")
    assert any(method == known and fits(path, route) for known, route in routes), (method, path)
    if data and not data.startswith("@"):
        body = json.loads(data.replace("<id>", UUID))
        if path == "/api/jobs" or path.startswith("/api/jobs/"):
            JOB_BODY.validate_python(body)
        else:
            BODIES[path].model_validate(body)


def fits(path: str, route: str) -> bool:
    """True if a path has the form of a route; `{file}` also has slashes."""
    pattern = re.sub(r"\\{(\w+)\\}", lambda name: ".+" if name[1] == "file" else "[^/]+", re.escape(route))
    return re.fullmatch(pattern, path) is not None
