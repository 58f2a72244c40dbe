"""The page Playground: the models that it offers, and the one that it chooses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from api.pages import playground
from api.pages.choices import MOST_CHOICES
from services.kinds.model_summary import ModelSummary
from tests.api_client import client_of

pytestmark = pytest.mark.disable_socket

MERGE = {
    "operation": "merge",
    "inputs": [
        {"role": "base", "name": "base"},
        {"role": "adapter", "name": "zh", "scale": 0.0},
        {"role": "adapter", "name": "alpaca", "scale": None},
    ],
}


def summary(name: str, kind: str = "huggingface", day: int = 1, **more: Any) -> ModelSummary:
    return ModelSummary.model_validate(
        {"name": name, "kind": kind, "size_bytes": 1, "created_at": f"2026-11-{day:02}T00:00:00Z", **more}
    )


@pytest.fixture
def models() -> list[ModelSummary]:
    return [
        summary("alpaca", "adapter"),
        summary("base", day=9),
        summary("broken", problems=["It has no config.json."], lineage=MERGE),
        summary("merged-1", day=3, lineage=MERGE),
        summary("merged-2", day=5, lineage=MERGE),
        summary("original", "original"),
        summary("zh", "adapter"),
    ]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[ModelSummary]) -> FlaskClient:
    client = client_of(tmp_path)
    reader = client.application.extensions["graftwerk"].models
    monkeypatch.setattr(type(reader), "models", lambda self: models)
    return client


def selected(text: str) -> list[str]:
    choice = text[text.index('<select id="model">') : text.index("</select>", text.index('id="model"'))]
    return re.findall(r'<option value="([^"]*)" selected', choice)


def data(text: str) -> dict[str, Any]:
    found = re.search(r'id="playground-data">(.+?)</script>', text)
    assert found
    return dict(json.loads(found[1]))


def models_in(offer: dict[str, Any]) -> list[str]:
    return [choice["name"] for choice in offer["choices"]]


def test_the_latest_merged_model_is_chosen(client: FlaskClient) -> None:
    assert selected(client.get("/playground").text) == ["merged-2"]


def test_a_base_alone_is_never_chosen(client: FlaskClient, models: list[ModelSummary]) -> None:
    models[:] = [summary("base", day=9), summary("qwen", day=8)]
    assert selected(client.get("/playground").text) == [""]


def test_the_query_chooses_model_and_adapters(client: FlaskClient) -> None:
    page = client.get("/playground?model=base&adapters=zh,unknown,alpaca@-1.5").text
    assert selected(page) == ["base"]
    assert data(page)["chosen"] == [{"name": "zh", "scale": 1.0}, {"name": "alpaca", "scale": -1.5}]


def test_an_unknown_model_in_the_query_chooses_the_latest_merged_one(client: FlaskClient) -> None:
    assert selected(client.get("/playground?model=original").text) == ["merged-2"]


def test_models_with_problems_and_other_kinds_are_not_offered(client: FlaskClient) -> None:
    page = client.get("/playground").text
    assert models_in(data(page)["models"]) == ["merged-2", "merged-1", "base"]
    choice = page[page.index('<select id="model">') : page.index("</select>", page.index('id="model"'))]
    assert re.findall('<option value="(.*?)"', choice) == ["merged-2", "merged-1", "base"]


def test_a_merged_model_carries_its_base_and_adapters_with_their_scales(client: FlaskClient) -> None:
    facts = data(client.get("/playground").text)["models"]["choices"][1]
    assert facts["name"] == "merged-1"
    assert facts["base"] == "base"
    assert facts["adapters"] == [{"name": "zh", "scale": 0.0}, {"name": "alpaca", "scale": 1.0}]


def test_inputs_of_a_merge_that_cannot_be_used_are_left_out(
    client: FlaskClient, models: list[ModelSummary]
) -> None:
    models[:] = [model for model in models if model.name not in ("base", "zh")]
    facts = data(client.get("/playground").text)["models"]["choices"][1]
    assert (facts["name"], facts["base"]) == ("merged-1", None)
    assert facts["adapters"] == [{"name": "alpaca", "scale": 1.0}]


# ---- many models --------------------------------------------------------------------------------------

MANY = 1000
LARGEST_PAGE_BYTES = 150_000


@pytest.fixture
def crowded(client: FlaskClient, models: list[ModelSummary]) -> FlaskClient:
    """A client of a service with many models and adapters."""
    models.extend(summary(f"model-{number:04}", day=2) for number in range(MANY))
    models.extend(summary(f"lora-{number:04}", "adapter") for number in range(MANY))
    return client


def test_a_page_of_many_models_is_small_and_says_how_many_there_are(crowded: FlaskClient) -> None:
    page = crowded.get("/playground").text
    assert len(page.encode()) < LARGEST_PAGE_BYTES
    offer = data(page)
    assert models_in(offer["models"])[:4] == ["merged-2", "merged-1", "base", "model-0000"]
    assert len(models_in(offer["models"])) == len(models_in(offer["adapters"])) == MOST_CHOICES
    assert (offer["models"]["total"], offer["adapters"]["total"]) == (MANY + 3, MANY + 2)
    assert page.count("<option") < 100


def test_the_chosen_model_and_adapters_of_many_are_those_of_the_query(crowded: FlaskClient) -> None:
    page = crowded.get("/playground?model=model-0900&adapters=lora-0800@0.5").text
    assert selected(page) == ["model-0900"]
    assert "model-0900" in models_in(data(page)["models"])
    assert data(page)["chosen"] == [{"name": "lora-0800", "scale": 0.5}]


def test_a_search_finds_what_is_not_listed(crowded: FlaskClient) -> None:
    found = crowded.get("/playground/models?search=MODEL+-087").get_json()
    assert models_in(found) == [f"model-{number:04}" for number in range(870, 880)]
    assert (found["matching"], found["total"]) == (10, MANY + 3)
    assert models_in(crowded.get("/playground/adapters?search=0999").get_json()) == ["lora-0999"]
    assert models_in(crowded.get("/playground/models?search=lora").get_json()) == []


def test_models_that_a_browser_keeps_are_asked_for_by_name(crowded: FlaskClient) -> None:
    found = crowded.get("/playground/adapters?search=alpaca&name=lora-0990&name=missing").get_json()
    assert models_in(found) == ["alpaca", "lora-0990"]
    assert found["matching"] == 1


def test_without_a_model_the_page_offers_ways_to_get_one(tmp_path: Path) -> None:
    page = client_of(tmp_path).get("/playground").text
    assert "No model can generate text yet." in page
    assert 'href="/merge"' in page


def test_the_first_preset_is_that_of_the_api() -> None:
    from services.sampling import Sampling

    values = next(iter(playground.PRESETS.values()))[1]
    defaults = Sampling()
    assert values == {name: getattr(defaults, name) for name in values}
