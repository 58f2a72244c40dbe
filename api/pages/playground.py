"""The page Playground: conversations, raw continuation, and models side by side."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from flask import Response, jsonify, request
from flask_babel import gettext, lazy_gettext

from api.pages.choices import Choices, choices_of
from api.pages.layout import page_blueprint, page_response
from api.state import state
from services.kinds.model_summary import ModelSummary
from services.templates import OWN_TEMPLATE, TEMPLATES

PRESETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "scripts": (
        lazy_gettext("As the 2023 scripts"),
        {"temperature": 0.2, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1},
    ),
    "greedy": (
        lazy_gettext("Most likely token"),
        {"temperature": 0, "top_k": 0, "top_p": 1, "repetition_penalty": 1},
    ),
    "balanced": (
        lazy_gettext("Balanced"),
        {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1},
    ),
    "varied": (
        lazy_gettext("Varied"),
        {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1},
    ),
}
"""Sampling settings by name; the first are the defaults of the API."""

TEMPLATE_NOTES = {
    "alpaca": lazy_gettext("Chinese-Alpaca, as its inference script writes it"),
    "alpaca-train": lazy_gettext("Chinese-Alpaca, as it was trained"),
    "alpaca-chat": lazy_gettext("the same, for conversations"),
    "alpaca-2": lazy_gettext("Chinese-Alpaca-2"),
    "llama-2": lazy_gettext("Llama 2 Chat"),
    "llama-3": lazy_gettext("Llama 3 Instruct"),
    "vicuna": lazy_gettext("Vicuna 1.1"),
    "chatml": lazy_gettext("ChatML"),
    "raw": lazy_gettext("no template"),
}

_SCALE = re.compile(r"-?\d{1,3}(\.\d{1,9})?")

page = page_blueprint("playground")


@page.get("/playground")
def playground() -> Response:
    """Returns the page; `model` and `adapters` (`name` or `name@scale`, with commas) in the query preselect."""
    summaries = state().models.models()
    models = _models(summaries)
    selected = _selected(models)
    listed = choices_of(models, chosen=[selected] if selected else ())
    return page_response(
        "playground/page.html",
        selected=selected,
        data={
            "models": _offer(listed, summaries),
            "adapters": _offer(choices_of(_adapters(summaries)), summaries),
            "chosen": _chosen(
                request.args.get("adapters", ""), [model.name for model in _adapters(summaries)]
            ),
            "presets": {name: values for name, (_, values) in PRESETS.items()},
        },
        groups=_groups(listed.models),
        presets=PRESETS,
        own_template=OWN_TEMPLATE,
        templates={name: TEMPLATE_NOTES.get(name, "") for name in TEMPLATES},
    )


@page.get("/playground/models")
def playground_models() -> Response:
    """Returns the models that `search` finds, and those with each `name`, as JSON."""
    summaries = state().models.models()
    return jsonify(_offer(_found(_models(summaries)), summaries))


@page.get("/playground/adapters")
def playground_adapters() -> Response:
    """Returns the adapters that `search` finds, and those with each `name`, as JSON."""
    summaries = state().models.models()
    return jsonify(_offer(_found(_adapters(summaries)), summaries))


def _found(models: Sequence[ModelSummary]) -> Choices:
    return choices_of(models, request.args.get("search", ""), request.args.getlist("name"))


def _offer(choices: Choices, summaries: Sequence[ModelSummary]) -> dict[str, Any]:
    """Returns choices as the script reads them."""
    usable = {model.name for model in summaries if _can_generate(model) or _is_adapter(model)}
    facts = [_facts(model, usable) for model in choices.models]
    return {"choices": facts, "matching": choices.matching, "total": choices.total}


def _models(summaries: Sequence[ModelSummary]) -> list[ModelSummary]:
    """Returns the models that generate: merged ones first, the newest first."""
    return sorted(filter(_can_generate, summaries), key=_rank, reverse=True)


def _adapters(summaries: Sequence[ModelSummary]) -> list[ModelSummary]:
    return [summary for summary in summaries if _is_adapter(summary)]


def _chosen(text: str, adapters: Sequence[str]) -> list[dict[str, str | float]]:
    """Returns the adapters in a query that are on the volume, with their scales; a scale that is not a number is 1."""
    chosen: list[dict[str, str | float]] = []
    for part in text.split(","):
        name, _, scale = part.partition("@")
        if name in adapters:
            chosen.append({"name": name, "scale": float(scale) if _SCALE.fullmatch(scale) else 1.0})
    return chosen


def _can_generate(summary: ModelSummary) -> bool:
    return not summary.problems and (summary.kind == "huggingface" or summary.engine is not None)


def _is_adapter(summary: ModelSummary) -> bool:
    return summary.kind == "adapter" and not summary.problems


def _is_merged(summary: ModelSummary) -> bool:
    return (summary.lineage or {}).get("operation") == "merge"


def _rank(summary: ModelSummary) -> tuple[bool, float]:
    """Returns the order in the list: merged models first, the newest first."""
    return _is_merged(summary), summary.created_at.timestamp() if summary.created_at else 0.0


def _selected(choices: Sequence[ModelSummary]) -> str | None:
    """Returns the model of the query, otherwise the latest merged one; a base alone is never chosen for people."""
    asked = request.args.get("model")
    if any(summary.name == asked for summary in choices):
        return asked
    return next((summary.name for summary in choices if _is_merged(summary)), None)


def _groups(choices: Sequence[ModelSummary]) -> list[tuple[str, list[ModelSummary]]]:
    merged = [summary for summary in choices if _is_merged(summary)]
    others = [summary for summary in choices if not _is_merged(summary)]
    return [
        (title, group)
        for title, group in ((gettext("Merged"), merged), (gettext("Other models"), others))
        if group
    ]


def _facts(summary: ModelSummary, usable: Collection[str]) -> dict[str, Any]:
    """Returns what the script needs: of a model the version of its files, and of what it was merged if that can be used."""
    if _is_adapter(summary):
        return {"name": summary.name}
    inputs = (summary.lineage or {}).get("inputs", []) if _is_merged(summary) else []
    found = [entry for entry in inputs if entry["name"] in usable]
    adapters = [
        {"name": entry["name"], "scale": 1.0 if entry.get("scale") is None else entry["scale"]}
        for entry in found
        if entry["role"] == "adapter"
    ]
    return {
        "name": summary.name, "merged": _is_merged(summary), "version": summary.digest or "",
        "base": next((entry["name"] for entry in found if entry["role"] == "base"), None), "adapters": adapters,
    }  # fmt: skip
