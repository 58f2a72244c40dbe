"""Completion of names by shells. The service is asked for a second at most; where it does not respond nothing is completed."""

import os
from collections.abc import Callable
from typing import Any

import typer

DEFAULT_URL = "http://127.0.0.1:8000"
SECONDS = 1.0

Item = dict[str, Any]
Names = list[tuple[str, str]]
"""Names with a word about each, which zsh and fish show."""


def all_names(context: typer.Context, incomplete: str) -> Names:
    """Returns names of models, adapters and tokenizers."""
    return _models(context, incomplete, lambda _: True)


def model_names(context: typer.Context, incomplete: str) -> Names:
    """Returns names of models that are not adapters."""
    return _models(context, incomplete, lambda kind: kind not in ("adapter", "tokenizer"))


def adapter_names(context: typer.Context, incomplete: str) -> Names:
    """Returns names of adapters, behind those that the word names already: `zh,al` becomes `zh,alpaca`."""
    before, comma, last = incomplete.rpartition(",")
    found = _models(context, last, lambda kind: kind == "adapter")
    return [(f"{before}{comma}{name}", kind) for name, kind in found]


def job_ids(context: typer.Context, incomplete: str) -> Names:
    """Returns the ids of the newest jobs."""
    return _jobs(context, incomplete, lambda _: True)


def unfinished_job_ids(context: typer.Context, incomplete: str) -> Names:
    """Returns the ids of queued and running jobs."""
    return _jobs(context, incomplete, lambda status: status in ("queued", "running"))


def template_names(context: typer.Context, incomplete: str) -> Names:
    """Returns names of prompt templates."""
    names = [item["name"] for item in _items(context, "templates", "name")]
    return [(name, "") for name in names if name.startswith(incomplete)]


def _models(context: typer.Context, incomplete: str, wanted: Callable[[str], bool]) -> Names:
    found = [(item["name"], item["kind"]) for item in _items(context, "models", "name", "kind")]
    return [(name, kind) for name, kind in found if name.startswith(incomplete) and wanted(kind)]


def _jobs(context: typer.Context, incomplete: str, wanted: Callable[[str], bool]) -> Names:
    found = _items(context, "jobs", "id", "kind", "status")
    return [
        (item["id"], f"{item['kind']}, {item['status']}")
        for item in found
        if item["id"].startswith(incomplete) and wanted(item["status"])
    ]


def _items(context: typer.Context, path: str, *fields: str) -> list[Item]:
    """Returns the objects of a list of the API with these texts; none if the service does not respond as expected."""
    import httpx

    from graftwerk.protocol import connection_options

    given = context.params
    url = given.get("url") or os.environ.get("GRAFTWERK_URL") or DEFAULT_URL
    key = given.get("api_key") or os.environ.get("GRAFTWERK_API_KEY")
    options = connection_options(url, key) | {"timeout": SECONDS, "transport": httpx.HTTPTransport()}
    try:
        with httpx.Client(**options) as client:
            items = client.get(f"/api/{path}").raise_for_status().json()[path]
        return [item for item in items if all(isinstance(item[field], str) for field in fields)]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return []
