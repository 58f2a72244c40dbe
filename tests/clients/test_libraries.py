"""Libraries of people's programs: each one's script runs in its own environment and prints what it got."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.clients.conftest import BEGUN, GGUF_MODEL, MODEL, TOOL_MODEL, Reference, Service, output_of
from tests.clients.environments import program_of
from tests.clients.programs.asked import MESSAGES, RAIN, TOOLS

PROGRAMS = Path(__file__).parent / "programs"
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
WIDTH = 576


def run(name: str, service: Service, home: Path) -> dict[str, Any]:
    script = PROGRAMS / f"{name}_program.py"
    printed = output_of(
        [program_of(name), script, service.url, MODEL, TOOL_MODEL], home=home, variables=OFFLINE
    )
    found: dict[str, Any] = json.loads(printed)
    return found


@pytest.mark.parametrize("name", ["openai", "litellm", "langchain"])
def test_a_library_chats_streams_offers_tools_and_gets_its_schema(
    name: str, service: Service, reference: Reference, tmp_path: Path
) -> None:
    found = run(name, service, tmp_path)
    assert (found["chat"], found["stream"], found["offered"]) == (reference.answer,) * 3
    assert found["parsed"].keys() == {"city", "population"}
    assert len(found["parsed"]["city"]) <= 20
    assert isinstance(found["parsed"]["population"], int)
    assert {len(vector) for vector in found["vectors"]} == {WIDTH if name == "litellm" else 64}
    for vector in found["vectors"]:
        assert sum(number**2 for number in vector) == pytest.approx(1, abs=1e-5)
    if name == "openai":
        check_openai(found, reference)
        check_calls_of_openai(found["called"], reference)
        return
    check_call(found["called"])
    if name == "litellm":
        assert found["streamed_call"] == found["called"]
    else:
        assert found["ended"] == answer_to_result(found["called"], reference)[0]
        assert found["parsed_call"].keys() == found["parsed"].keys()
        assert isinstance(found["parsed_object"], dict)


def test_anthropics_client_chats_streams_offers_tools_and_begins_turns(
    service: Service, reference: Reference, tmp_path: Path
) -> None:
    found = run("anthropic", service, tmp_path)
    assert (found["chat"], found["stream"], found["offered"]) == (reference.answer,) * 3
    assert found["continued"] == reference.rest
    assert found["stop_reason"] == "end_turn"
    assert found["usage"] == found["stream_usage"]
    assert found["counted"] == found["usage"][0]
    check_call(found["called"])
    assert found["streamed_call"] == found["called"]
    assert found["call_stop_reason"] == "tool_use"
    assert found["ended"] == answer_to_result(found["called"], reference)[0]


def check_openai(found: dict[str, Any], reference: Reference) -> None:
    """Checks what only the official client was asked for: the list of models, a begun turn, scores, usage, token ids."""
    assert set(found["models"]) == {MODEL, GGUF_MODEL, TOOL_MODEL}
    assert found["continued"] == reference.rest
    assert found["offered_ignored"] == ["tools"]
    assert found["extension"]["engine"] == "graftwerk"
    assert found["usage"][0] == found["usage"][1]
    assert found["text"].startswith(f"{BEGUN} Paris")
    assert found["scores"][0] is None
    assert found["scores"][1:-1] == pytest.approx(reference.scores, abs=1e-3)
    assert found["ids_vector"] == pytest.approx(found["vectors"][1], abs=1e-6)


def check_calls_of_openai(found: dict[str, Any], reference: Reference) -> None:
    """Checks a required call, the same one streamed, and the answer to its result; the prompts are those of transformers."""
    function = found["call"]["function"]
    call = [function["name"], function["arguments"]]
    check_call(call)
    assert found["streamed"]["function"]["name"] == function["name"]
    assert found["streamed"]["function"]["arguments"] == function["arguments"]
    assert (found["finish_reason"], found["content"], found["ignored"]) == ("tool_calls", None, [])
    ended, read = answer_to_result(call, reference)
    assert found["ended"] == ended
    assert found["prompt_tokens"] == [reference.with_tools(MESSAGES)[1], read]


def check_call(call: list[str]) -> None:
    """Checks the name of a call, and its arguments by the schema of the tool."""
    name, arguments = call
    assert name == TOOLS[0]["function"]["name"]
    jsonschema.validate(json.loads(arguments), TOOLS[0]["function"]["parameters"])


def answer_to_result(call: list[str], reference: Reference) -> tuple[str, int]:
    """Returns what transformers writes after a call and its result, and the number of the prompt's tokens."""
    name, arguments = call
    function = {"name": name, "arguments": json.loads(arguments)}
    asked = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    return reference.with_tools([*MESSAGES, asked, {"role": "tool", "content": RAIN}])
