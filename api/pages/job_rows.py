"""Jobs as the pages show them: inputs, output, times and figures that templates cannot compute."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import mul
from typing import Any, NamedTuple

from api.pages.layout import format_source
from api.responses import JobResponse, job_responses
from api.state import state
from services.jobs.records import reaching_redis, read_jobs
from services.jobs.status import Job
from services.kinds import KINDS
from services.kinds.adapter_tools import TensorError
from services.kinds.compare import CompareRequest
from services.kinds.import_ import ImportRequest
from services.kinds.shared import Result
from services.kinds.verify import VerifyRequest

TITLE_CHARACTERS = 80
"""Largest length of a prompt in the title of a job."""

SHOWN_ELSEWHERE = frozenset({"kind", "after", "metadata", "webhook"})
"""Fields of a request that a job's page shows in places of their own."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job with the values that its row and its page show."""

    job: JobResponse

    @property
    def subject(self) -> str:
        """Inputs as a text: the source of an import, the variants of a comparison, otherwise the models that it reads."""
        match self.job.request:
            case ImportRequest(source=source):
                return format_source(source.name)
            case CompareRequest(variants=variants):
                return " ↔ ".join(variant.name for variant in variants)
            case VerifyRequest(model=model, base=str(base), adapters=adapters):
                return f"{model} = {' + '.join([base, *(adapter.name for adapter in adapters)])}"
            case asked:
                return " + ".join(asked.reads)

    @property
    def output(self) -> str | None:
        """Name of the model or the repository that it makes."""
        repository = getattr(self.job.request, "repository", None)
        return self.job.request.makes or (repository if isinstance(repository, str) else None)

    @property
    def prompt(self) -> str | None:
        """Beginning of its first prompt, of the last message of its conversation or of its text."""
        request = self.job.request
        texts = [getattr(request, name, None) for name in ("prompt", "text", "text_file", "prompts_file")]
        texts += [(getattr(request, name, None) or [None])[0] for name in ("prompts", "inputs")]
        messages = getattr(request, "messages", None)
        texts += [messages[-1].content] if messages else []
        found = next((text for text in texts if isinstance(text, str)), None)
        return None if found is None else shortened(found)

    @property
    def rate(self) -> float | None:
        """Units per second that the time left follows from; None if that is not known."""
        progress = self.job.progress
        if self.job.status != "running" or progress is None or not progress.eta_seconds or not progress.total:
            return None
        return max(0.0, (progress.total - progress.done) / progress.eta_seconds)

    @property
    def waited_seconds(self) -> float:
        """Time from its submission to its start, or to its end or the present if it has not started."""
        end = self.job.started_at or self.job.finished_at or datetime.now(UTC)
        return _seconds(self.job.created_at, end)

    @property
    def run_seconds(self) -> float | None:
        """Time that it ran, until now if it runs; None if it has not started."""
        if self.job.started_at is None:
            return None
        return _seconds(self.job.started_at, self.job.finished_at or datetime.now(UTC))

    @property
    def asked(self) -> dict[str, Any]:
        """Fields of the request that differ from their defaults, except those that the page shows elsewhere."""
        fields = self.job.request.model_dump(mode="json", exclude_defaults=True)
        return {name: value for name, value in fields.items() if name not in SHOWN_ELSEWHERE}

    @property
    def sent(self) -> dict[str, Any]:
        """The request as a program would send it again: without the jobs that it ran after."""
        return {"kind": self.job.kind, **self.asked}

    @property
    def is_drawn(self) -> bool:
        """True if the result is one of this version, for which its kind has a template."""
        kind = KINDS.get(self.job.kind)
        return kind is not None and isinstance(self.job.result, kind.result)


def job_rows(jobs: Sequence[Job]) -> list[JobRow]:
    """Returns jobs as the pages show them."""
    return [JobRow(job) for job in job_responses(jobs)]


@reaching_redis()
def rows_of(job_ids: Sequence[str]) -> list[JobRow]:
    """Returns the rows of the jobs that exist, in this order."""
    return job_rows([job for job in read_jobs(state().queue.redis, job_ids) if job is not None])


def shortened(text: str, characters: int = TITLE_CHARACTERS) -> str:
    """Returns the beginning of a text on one line."""
    line = " ".join(text[: characters * 4].split())
    return line if len(line) <= characters and len(text) <= characters * 4 else f"{line[:characters]}…"


def _seconds(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())


# ---- figures of results -------------------------------------------------------------------------------


class Marked(NamedTuple):
    """A text in three parts: equal to another, the first difference, the rest."""

    before: str
    mark: str
    after: str


def marked(text: str, position: int | None) -> Marked:
    """Returns a text divided at its first difference, which is marked up to the next space."""
    if position is None or position >= len(text):
        return Marked(text, "", "")
    rest = text[position:]
    word = rest.split(maxsplit=1)[0] if rest.strip() else rest
    end = rest.find(word) + len(word)
    return Marked(text[:position], rest[:end], rest[end:])


def first_differences(labels: Sequence[str], differences: Sequence[Any]) -> dict[str, int | None]:
    """Returns, for each variant, the character from which it differs from the first one; for that one, the earliest."""
    found: dict[str, int | None] = dict.fromkeys(labels)
    for difference in differences:
        one, other = difference.variants
        if one == labels[0] and difference.character is not None:
            found[other] = difference.character
    known = [position for position in found.values() if position is not None]
    found[labels[0]] = min(known, default=None)
    return found


class LayerError(NamedTuple):
    """Relative error of all changes of one layer together."""

    layer: str
    error: float
    tensors: int


def layer_errors(errors: Sequence[TensorError]) -> list[LayerError]:
    """Returns the errors of tensors by layer: the norm of what is missing, by that of the changes.

    Without norms (older records) it is the largest error of the layer.
    """
    layers = defaultdict[str, list[TensorError]](list)
    for error in errors:
        layers[_layer(error.tensor)].append(error)
    return [LayerError(layer, _joint(of_layer), len(of_layer)) for layer, of_layer in layers.items()]


def _layer(tensor: str) -> str:
    parts = tensor.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return tensor if number is None else ".".join(parts[: number + 1])


def _joint(errors: Sequence[TensorError]) -> float:
    norms = [error.norm for error in errors]
    size = math.hypot(*(norm or 0.0 for norm in norms))
    if None in norms or not size:
        return max(error.error for error in errors)
    return math.hypot(*(error.error * (error.norm or 0.0) for error in errors)) / size


def cosines(vectors: Sequence[Sequence[float]]) -> list[list[float]]:
    """Returns the cosine of each pair of vectors of length 1."""
    return [[sum(map(mul, one, other)) for other in vectors] for one in vectors]


def norm(vector: Sequence[float]) -> float:
    """Returns the length of a vector."""
    return math.hypot(*vector)


def norm_table(accounts: Sequence[Any]) -> dict[str, list[float | None]]:
    """Returns, by kind of module, the norm of each adapter's change; None for one that does not change it."""
    modules = dict.fromkeys(module for account in accounts for module in account.change_norms)
    return {module: [account.change_norms.get(module) for account in accounts] for module in modules}


def extra_fields(result: Result, shown: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a result that a template does not draw."""
    return {
        name: value
        for name, value in result.model_dump(mode="json", exclude_unset=True).items()
        if name not in shown and value not in (None, [], {}, "")
    }
