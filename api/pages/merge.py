"""The page New merge: a merge, composed and checked before it is submitted, and the progress of its jobs."""

from collections.abc import Sequence
from typing import Any

from flask import Response, request
from flask_babel import gettext

from api.jobs import JobPath, job_id_of
from api.pages import job_rows
from api.pages.choices import choices_of
from api.pages.layout import page_blueprint, page_response
from api.pages.sentences import sentence
from api.responses import JobResponse, job_responses
from api.state import state
from services.errors import JobNotFound
from services.kinds.model_summary import ModelSummary
from services.models.known_artifacts import KNOWN_ADAPTERS
from services.names import RESERVED_NAMES
from services.preflight.plan import BASE_KINDS

page = page_blueprint("merge")

MOST_JOBS = 8
"""Most jobs of a chain that the page shows."""

LONG_LIST = 8
"""Most models of a list without a field to search it."""

BASES_BY_ADAPTER = {known.name: known.base for known in KNOWN_ADAPTERS.values()}
"""The base of each published adapter, by its name."""


@page.get("/merge")
def merge() -> Response:
    """Returns the page: of a new merge, or with `jobs` of the progress of one."""
    ids = [part for part in request.args.get("jobs", "").split(",") if part]
    return _progress(ids[:MOST_JOBS]) if ids else _composition()


@page.get("/merge/bases")
def merge_bases() -> Response:
    """Returns the bases that a search finds as a fragment, and the chosen one."""
    return page_response("merge/bases.html", **_bases(state().models.models(), request.args.get("base", "")))


@page.get("/merge/adapters")
def merge_adapters() -> Response:
    """Returns the adapters that a search finds as a fragment."""
    return page_response("merge/adapters.html", **_adapters(state().models.models()))


@page.get("/merge/jobs/<job_id>/result")
def merge_result(job_id: str) -> Response:
    """Returns the result of a merge as a fragment: its verification, and what each adapter has changed."""
    job = state().queue.get(job_id_of(JobPath(job_id=job_id)))
    return page_response("merge/result.html", row=job_rows.job_rows([job])[0], figures=job_rows)


def _composition() -> Response:
    models = state().models.models()
    adapters = [part.partition("@")[0] for part in request.args.get("adapters", "").split(",")]
    base = _chosen_base(models, request.args.get("base", ""), adapters[0])
    return page_response(
        "merge/page.html",
        long_list=LONG_LIST,
        data={"names": [*(model.name for model in models), *RESERVED_NAMES]},
        **_bases(models, base),
        **_adapters(models, adapters),
    )


def _bases(models: Sequence[ModelSummary], chosen: str) -> dict[str, Any]:
    """Returns the values of the template with the bases that the query searches for; `chosen` is listed in any case."""
    search = request.args.get("search", "")
    usable = [model for model in models if _can_be_base(model)]
    return {
        "bases": choices_of(usable, search, [chosen]),
        "others": choices_of([model for model in models if not _can_be_base(model)], search),
        "chosen_base": chosen,
        "reason_of": _reason,
        "base_facts": _base_facts,
    }


def _adapters(models: Sequence[ModelSummary], chosen: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the values of the template with the adapters that the query searches for, and the chosen ones."""
    search = request.args.get("search", "")
    found = [model for model in models if model.kind == "adapter"]
    return {
        "adapters": choices_of([model for model in found if not model.problems], search, chosen),
        "broken": choices_of([model for model in found if model.problems], search),
        "adapter_facts": _adapter_facts,
    }


def _chosen_base(models: Sequence[ModelSummary], asked: str, adapter: str) -> str:
    """Returns the base in the query; without one that which the first adapter records, or the only one there is."""
    names = [model.name for model in models if _can_be_base(model)]
    recorded = next((_adapter_facts(model)["base"] for model in models if model.name == adapter), None)
    candidates = [asked] if asked else [recorded, *names[: len(names) == 1]]
    return next((name for name in candidates if name in names), "")


def _can_be_base(model: ModelSummary) -> bool:
    return model.kind in BASE_KINDS and not model.problems


def _reason(model: ModelSummary) -> str:
    """Returns the reason why a model cannot be a base."""
    if model.problems:
        return sentence(model.problems[0])
    reasons: dict[str, str] = {
        "adapter": gettext("An adapter: add it to a base below."),
        "gguf": gettext("A GGUF file: convert it to Hugging Face first."),
        "tokenizer": gettext("A tokenizer without weights."),
    }
    return reasons.get(model.kind) or str(gettext("Its files are not recognized as a model."))


def _base_facts(model: ModelSummary) -> dict[str, Any]:
    inputs = (model.lineage or {}).get("inputs", [])
    return {
        "kind": model.kind, "size": model.size_bytes, "parameters": model.parameters, "vocabulary": model.vocabulary_size,
        "known": model.known_as, "width": (model.architecture or {}).get("hidden_size"), "inputs": [entry["name"] for entry in inputs],
    }  # fmt: skip


def _adapter_facts(model: ModelSummary) -> dict[str, Any]:
    facts = model.adapter or {}
    return {
        "type": facts.get("type"), "width": facts.get("hidden_size"), "vocabulary": model.vocabulary_size,
        "base": (facts.get("base") or {}).get("model"), "path": facts.get("base_model_name_or_path"),
        "known": model.known_as, "knownBase": BASES_BY_ADAPTER.get(model.known_as or ""),
        "scalable": facts.get("type") in ("LORA", None),
    }  # fmt: skip


def _progress(ids: Sequence[str]) -> Response:
    found = job_responses([job for job_id in ids for job in _jobs(job_id)])
    if not found:
        raise JobNotFound(
            f"None of the {len(ids)} jobs of this page exists.",
            "Their records have expired or were deleted; the models that they made remain.",
        )
    return page_response(
        "merge/progress.html",
        jobs=[job.model_dump(mode="json") for job in found],
        target=_target(found),
        missing=len(ids) - len(found),
        generating=[format_ for format_ in ("huggingface", "gguf") if state().engines.engines().of(format_)],
    )


def _jobs(job_id: str) -> list[Any]:
    try:
        return [state().queue.get(job_id_of(JobPath(job_id=job_id)))]
    except JobNotFound:
        return []


def _target(jobs: Sequence[JobResponse]) -> str:
    """Returns the name of the model that the last job makes."""
    made: list[str] = [job.request.makes for job in jobs if job.request.makes]
    return made[-1] if made else ""
