"""The page Models: the models on the volume, ways to bring more, and a page for each model."""

from collections.abc import Mapping
from typing import Any, get_args

from flask import Response, request, url_for
from flask_babel import lazy_gettext

from api.errors import problem_of_error
from api.models import existing
from api.pages.kind_names import kind_names
from api.pages.layout import is_fragment_request, page_blueprint, page_response
from api.pages.lineage_graph import graph_of
from api.pages.model_list import PROBLEMS, SORTS, Selection, page_number, part_of
from api.pages.model_relations import bases_of, merge_order, verification_inputs
from api.state import state
from services.errors import GraftwerkError
from services.jobs.listing import JobFilter
from services.jobs.status import Job
from services.kinds.model_summary import ModelSummary
from services.kinds.shared import GgufDType
from services.models.base_offer import BaseOffer, hub_ids
from services.models.dependents import adapters_of, made_from
from services.models.tensor_list import TensorList
from services.preflight.model_reader import ModelRecord

TENSORS = 100
"""Tensors of one part of the table."""

FILES = 500
"""Files that are listed."""

JOBS = 20
"""Unfinished jobs that are shown."""

KINDS: Mapping[str, Any] = {
    "original": lazy_gettext("Original checkpoint"), "huggingface": lazy_gettext("Hugging Face model"),
    "adapter": lazy_gettext("Adapter"), "gguf": lazy_gettext("GGUF"), "tokenizer": lazy_gettext("Tokenizer"),
    "unknown": lazy_gettext("Not recognized"), PROBLEMS: lazy_gettext("With problems"),
}  # fmt: skip

SORT_TITLES: Mapping[str, Any] = {
    "name": lazy_gettext("By name"), "parameters": lazy_gettext("By parameters"), "size": lazy_gettext("By size"),
    "created": lazy_gettext("Newest first"),
}  # fmt: skip

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "original": ("huggingface", "gguf", "meta"), "huggingface": ("gguf", "huggingface", "meta"), "gguf": ("huggingface",),
    "adapter": ("gguf",),
}  # fmt: skip
"""Formats that a conversion offers, by kind of model, the usual one first."""

FORMAT_TITLES: Mapping[str, Any] = {
    "huggingface": lazy_gettext("Hugging Face"), "meta": lazy_gettext("Original (Meta)"), "gguf": lazy_gettext("GGUF"),
}  # fmt: skip

ENGINES: Mapping[str, Any] = {
    "graftwerk": lazy_gettext("Graftwerk's reference engine"), "llama.cpp": "llama.cpp", "vllm": "vLLM",
}  # fmt: skip
"""Names of the engines within workers."""

ROLES: Mapping[str, Any] = {
    "source": lazy_gettext("source"), "base": lazy_gettext("base"), "adapter": lazy_gettext("adapter"),
    "addition": lazy_gettext("addition"), "model": lazy_gettext("model"),
}  # fmt: skip
"""Names of what an input was for a model."""

page = page_blueprint("models")


@page.get("/")
def models() -> Response:
    """Returns the page, or its list alone."""
    found = state().models.models()
    template = "models/update.html" if is_fragment_request() else "models/page.html"
    return page_response(
        template, part=part_of(found, Selection.of(request.args)), jobs=_making(), kinds=KINDS, sorts=SORTS,
        sort_titles=SORT_TITLES, total=len(found), total_bytes=sum(model.size_bytes for model in found),
        free_bytes=state().store.free_bytes(), hub_enabled=state().settings.hub_enabled,
    )  # fmt: skip


def _making() -> list[Job]:
    """Returns the unfinished jobs that make models, the running ones first."""
    found = [
        job
        for status in ("running", "queued")
        for job in state().queue.list(JobFilter(status=status), limit=JOBS)[0]
    ]
    return [job for job in found if job.request.makes is not None]


@page.get("/models/<name>")
def model(name: str) -> Response:
    """Returns the page of one model."""
    existing(name)
    records = {record.summary.name: record for record in state().models.all()}
    if name not in records:  # it was deleted a moment ago
        raise state().store.not_found(name)
    summaries = {other: record.summary for other, record in records.items()}
    described = records[name].described(state().engines.engines())
    summary = BaseOffer(lambda: hub_ids(summaries.values())).complete(described)
    return page_response(
        "models/model.html", model=summary, kinds=KINDS, engines=ENGINES, graph=graph_of(name, summaries), roles=ROLES, outputs=OUTPUTS.get(summary.kind, ()),
        format_titles=FORMAT_TITLES, hub_enabled=state().settings.hub_enabled, gguf_dtypes=get_args(GgufDType), files_limit=FILES,
        jobs=_jobs(name, "running") + _jobs(name, "queued"), verify_request={"kind": "verify", "model": name},
        verified=_last_verification(summary), against_inputs=verification_inputs(summary, summaries), kind_names=kind_names(),
        **_details(name), **_uses(summary, records),
    )  # fmt: skip


def _details(name: str) -> dict[str, Any]:
    try:
        return {"details": state().models.details(name), "details_problem": None}
    except GraftwerkError as error:
        return {"details": None, "details_problem": problem_of_error(error)}


def _uses(summary: ModelSummary, records: Mapping[str, ModelRecord]) -> dict[str, Any]:
    """Returns the bases of an adapter, the order of its merge, and the address at which a model or adapter is tried."""
    summaries = {name: record.summary for name, record in records.items()}
    bases, order = bases_of(summary, summaries), merge_order(summary, summaries)
    model = next((name for name in (summary.name, *bases) if records[name].generates), None)
    adapters = ",".join(order) if summary.kind == "adapter" else None
    trial = url_for("pages_playground.playground", model=model, adapters=adapters) if model else None
    return {"bases": bases, "order": order, "trial": trial}


def _jobs(name: str, status: Any, kind: str | None = None, limit: int = JOBS) -> list[Job]:
    return state().queue.list(JobFilter(kind, status, name), limit=limit)[0]


def _last_verification(summary: ModelSummary) -> Job | None:
    """Returns the last verification of a model since it was made, None without one."""
    for job in _jobs(summary.name, "succeeded", "verify", limit=5):
        is_older = summary.created_at is not None and job.created_at < summary.created_at
        if not is_older and job.request.reads[0] == summary.name:
            return job
    return None


@page.get("/models/<name>/tensors")
def tensors(name: str) -> Response:
    """Returns a part of the table of tensors."""
    existing(name)
    search, number = request.args.get("search", "").strip()[:200], page_number(request.args.get("page", ""))
    found: TensorList = state().models.tensors(name, search, offset=(number - 1) * TENSORS, limit=TENSORS)
    pages = max(1, -(-found.matching // TENSORS))
    return page_response(
        "models/tensors.html", name=name, found=found, search=search, number=number, pages=pages
    )


@page.get("/models/<name>/delete")
def confirm_delete(name: str) -> Response:
    """Returns the content of the dialog that asks before a model is deleted: its size and what depends on it."""
    existing(name)
    found = state().models.models()
    own = next((summary for summary in found if summary.name == name), None)
    if own is None:  # it was deleted a moment ago
        raise state().store.not_found(name)
    return page_response(
        "models/delete.html", model=own, made=list(made_from(own, found)), adapters=list(adapters_of(own, found)),
        jobs=state().queue.unfinished(name), kind_names=kind_names(),
    )  # fmt: skip
