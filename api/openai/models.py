"""Models as OpenAI's API lists them: those of the volume, with the adapters recorded for them, and those of another server."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from flask import request as http_request

from api.openai.schemas import split_model
from api.state import state
from services.backend import FORWARDED_HEADER, ServedModel
from services.kinds.generate import GenerateRequest
from services.kinds.model_summary import ModelSummary
from services.models.base_offer import BaseOffer, hub_ids
from services.models.dependents import AdaptersByBase, adapters_of
from services.names import SERVED_NAME_PATTERN
from services.preflight.model_reader import ModelRecord


def is_forwarded() -> bool:
    """Returns True if another Graftwerk sent the request: it gets local models only, so that no request circulates."""
    return FORWARDED_HEADER in http_request.headers


def generating_models() -> list[str]:
    """Returns the names of the models of the volume that can generate."""
    return [record.summary.name for record in state().models.all() if record.generates]


def list_entries() -> list[dict[str, Any]]:
    """Returns the entries of all models: of the volume, with their adapters, then of the other server."""
    records = state().models.all()
    adapters = AdaptersByBase(_usable_adapters(records))
    local: dict[str, dict[str, Any]] = {}
    for summary in (record.summary for record in records if record.generates):
        names = adapters.of(summary)
        local[summary.name] = _local(summary.name, summary, names)
        local |= {
            f"{summary.name}+{name}": _local(f"{summary.name}+{name}", summary, [name]) for name in names
        }
    return [
        *local.values(),
        *(_remote(model) for name, model in served_models().items() if name not in local),
    ]


def find_entry(model: str) -> dict[str, Any]:
    """Returns the entry of a model by its name or by `base+adapter`.

    Raises:
        ModelNotFound: there is none.
        GraftwerkError: it cannot generate.
    """
    probe = GenerateRequest(kind="generate", prompt="", **split_model(model, SERVED_NAME_PATTERN))
    if probe.model not in state().store.names() and model in (served := served_models()):
        return _remote(served[model])
    state().preflight(probe)
    summary = state().models.describe(probe.model)
    own = [choice.name for choice in probe.adapters]
    return _local(model, summary, own or adapters_on_volume(summary))


def adapters_on_volume(summary: ModelSummary) -> list[str]:
    """Returns the adapters whose recorded base a model is."""
    return list(adapters_of(summary, _usable_adapters(state().models.all())))


def context_length(summary: ModelSummary) -> int | None:
    """Returns the tokens of a model's context, by its configuration, and by the setting for GGUF models."""
    sizes = summary.architecture or {}
    found = sizes.get("context_length" if summary.kind == "gguf" else "max_position_embeddings")
    if not isinstance(found, int):
        return None
    return min(found, state().settings.llama_cpp_context) if summary.kind == "gguf" else found


def served_models() -> Mapping[str, ServedModel]:
    """Returns the models of the other server that generates, if there is one."""
    backend = state().backend
    return {} if backend is None or is_forwarded() else backend.models()


def _usable_adapters(records: Iterable[ModelRecord]) -> Iterator[ModelSummary]:
    """Yields the summaries of the adapters without problems, with the base that each names."""
    found = [record.summary for record in records]
    offer = BaseOffer(lambda: hub_ids(found))
    yield from (
        offer.complete(summary) for summary in found if summary.kind == "adapter" and not summary.problems
    )


def _remote(model: ServedModel) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": model.owned_by}


def _local(name: str, summary: ModelSummary, adapters: list[str]) -> dict[str, Any]:
    made = summary.created_at or datetime.fromtimestamp((state().store.root / summary.name).stat().st_mtime)
    return {
        "id": name,
        "object": "model",
        "created": int(made.timestamp()),
        "owned_by": "graftwerk" if summary.created_at else "local",
        "max_model_len": context_length(summary),
        "adapters": adapters,
    }
