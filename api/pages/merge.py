"""The page New merge: a merge, composed and checked before it is submitted, and the progress of its jobs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flask import Response, request
from flask_babel import gettext

from api.jobs import JobPath, job_id_of
from api.pages import job_rows
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


class Choice(NamedTuple):
    """A model on the volume; `reason` says why it cannot be a base, empty if it can."""

    model: ModelSummary
    reason: str


@page.get("/merge")
def merge() -> Response:
    """Returns the page: of a new merge, or with `jobs` of the progress of one."""
    ids = [part for part in request.args.get("jobs", "").split(",") if part]
    return _progress(ids[:MOST_JOBS]) if ids else _composition()


@page.get("/merge/jobs/<job_id>/result")
def merge_result(job_id: str) -> Response:
    """Returns the result of a merge as a fragment: its verification, and what each adapter has changed."""
    job = state().queue.get(job_id_of(JobPath(job_id=job_id)))
    return page_response("merge/result.html", row=job_rows.job_rows([job])[0], figures=job_rows)


def _composition() -> Response:
    models = state().models.models()
    choices = [Choice(model, _reason(model)) for model in models]
    all_adapters = [model for model in models if model.kind == "adapter"]
    adapters = [model for model in all_adapters if not model.problems]
    return page_response(
        "merge/page.html",
        bases=[choice.model for choice in choices if not choice.reason],
        others=[choice for choice in choices if choice.reason],
        adapters=adapters,
        broken=[model for model in all_adapters if model.problems],
        long_list=LONG_LIST,
        data={
            "names": [*(model.name for model in models), *RESERVED_NAMES],
            "bases": {
                choice.model.name: _base_facts(choice.model) for choice in choices if not choice.reason
            },
            "adapters": {model.name: _adapter_facts(model) for model in adapters},
        },
    )


def _reason(model: ModelSummary) -> str:
    """Returns the reason why a model cannot be a base, empty if it can."""
    if model.problems:
        return sentence(model.problems[0])
    if model.kind in BASE_KINDS:
        return ""
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
