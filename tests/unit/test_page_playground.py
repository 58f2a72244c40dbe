"""The page Playground: the models that it offers, and the one that it chooses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from api.pages import playground
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
    assert set(data(page)["models"]) == {"base", "merged-1", "merged-2"}
    choice = page[page.index('<select id="model">') : page.index("</select>", page.index('id="model"'))]
    assert re.findall('<option value="(.*?)"', choice) == ["merged-2", "merged-1", "base"]


def test_a_merged_model_carries_its_base_and_adapters_with_their_scales(client: FlaskClient) -> None:
    facts = data(client.get("/playground").text)["models"]["merged-1"]
    assert facts["base"] == "base"
    assert facts["adapters"] == [{"name": "zh", "scale": 0.0}, {"name": "alpaca", "scale": 1.0}]


def test_without_a_model_the_page_offers_ways_to_get_one(tmp_path: Path) -> None:
    page = client_of(tmp_path).get("/playground").text
    assert "No model can generate text yet." in page
    assert 'href="/merge"' in page


def test_the_first_preset_is_that_of_the_api() -> None:
    from services.sampling import Sampling

    values = next(iter(playground.PRESETS.values()))[1]
    defaults = Sampling()
    assert values == {name: getattr(defaults, name) for name in values}
