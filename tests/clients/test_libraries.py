"""Libraries of people's programs: each one's script runs in its own environment and prints what it got."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import BEGUN, MODEL, Reference, Service, output_of
from tests.clients.environments import program_of

PROGRAMS = Path(__file__).parent / "programs"
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
WIDTH = 576


def run(name: str, service: Service, home: Path) -> dict[str, Any]:
    script = PROGRAMS / f"{name}_program.py"
    printed = output_of([program_of(name), script, service.url, MODEL], home=home, variables=OFFLINE)
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


def test_anthropics_client_chats_streams_offers_tools_and_begins_turns(
    service: Service, reference: Reference, tmp_path: Path
) -> None:
    found = run("anthropic", service, tmp_path)
    assert (found["chat"], found["stream"], found["offered"]) == (reference.answer,) * 3
    assert found["continued"] == reference.rest
    assert found["stop_reason"] == "end_turn"
    assert found["usage"] == found["stream_usage"]
    assert found["counted"] == found["usage"][0]


def check_openai(found: dict[str, Any], reference: Reference) -> None:
    """Checks what only the official client was asked for: the list of models, a begun turn, scores, usage."""
    assert found["models"] == [MODEL]
    assert found["continued"] == reference.rest
    assert found["offered_ignored"] == ["tools"]
    assert found["extension"]["engine"] == "graftwerk"
    assert found["usage"][0] == found["usage"][1]
    assert found["text"].startswith(f"{BEGUN} Paris")
    assert found["scores"][0] is None
    assert found["scores"][1:-1] == pytest.approx(reference.scores, abs=1e-3)
