"""One line about a succeeded job: what was done, how long it took, and the command that comes next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.filesize import decimal

from graftwerk.inference_results import (
    CompareResult,
    EmbedResult,
    GenerateResult,
    PerplexityResult,
    TokenizeResult,
)
from graftwerk.model_results import (
    CombineResult,
    ConvertResult,
    ExtendTokenizerResult,
    ExtractResult,
    ImportResult,
    LogitsComparison,
    MadeAdapter,
    MadeModel,
    MergeResult,
    PublishToHubResult,
    VerifyResult,
    WrittenCheckpoint,
)
from graftwerk.models import Job, JsonObject
from graftwerk.quantities import adapter_label, counted, duration


@dataclass(frozen=True)
class Outcome:
    """A succeeded job: what was done, its main figures, and the command that comes next ("" if none is obvious)."""

    done: str
    figures: str = ""
    next: str = ""


def outcome_line(job: Job, *, with_next: bool = True) -> str:
    """Returns `merged a + b → ab in 4.1 s, verified. Next: graftwerk chat ab`."""
    found = _OUTCOMES.get(type(job.result), _other)(job, job.result)
    took = f" in {duration(seconds)}" if (seconds := seconds_of(job)) is not None else ""
    figures = f", {found.figures}" if found.figures else ""
    end = f". Next: {found.next}" if found.next and with_next else "."
    return f"{found.done}{took}{figures}{end}"


def seconds_of(job: Job) -> float | None:
    """Returns the seconds from the start to the end of a job, None before."""
    if job.started_at is None or job.finished_at is None:
        return None
    return (job.finished_at - job.started_at).total_seconds()


# ---- jobs that make a model ---------------------------------------------------------------------------


def _imported(job: Job, result: ImportResult) -> Outcome:
    source = job.request.get("source", {})
    origin = source.get("hub") or source.get("path") or source.get("zip")
    done = f"imported {f'{origin} → ' if origin else ''}{_target(job, result)}"
    return Outcome(done, f"{counted(result.files, 'file')}, {decimal(result.bytes_written)}", _next(result))


def _converted(job: Job, result: ConvertResult) -> Outcome:
    figures = _written(result)
    if result.bits_per_weight is not None:
        figures += f", {result.bits_per_weight:.2f} bits per weight"
    if result.same_top_token is not None:
        figures += f", {result.same_top_token:.1%} of top tokens equal"
    done = f"converted {job.request.get('source')} → {_target(job, result)}"
    return Outcome(done, figures, _next(result))


def _merged(job: Job, result: MergeResult) -> Outcome:
    stack = " + ".join([job.request.get("base", "?"), *_adapters(job.request)])
    check = result.verification
    if check is None:
        figures = f"not verified, {_written(result)}"
    else:
        rows = counted(check.rows_recomputed or 0, "row")
        figures = f"verified ({rows}, {_logits(check.logits)})" if check.passed else "NOT verified"
    if result.same_as:
        figures = f"reused from {result.same_as}, {figures}"
    return Outcome(f"merged {stack} → {_target(job, result)}", figures, _next(result))


def _extended(job: Job, result: ExtendTokenizerResult) -> Outcome:
    counts = result.counts
    figures = (
        f"{counted(counts.added, 'piece')} added, {counts.present:,} present before, {counts.total:,} in all"
    )
    base, addition = job.request.get("base"), job.request.get("addition")
    return Outcome(f"extended the tokenizer of {base} by {addition} → {_target(job, result)}", figures)


def _extracted(job: Job, result: ExtractResult) -> Outcome:
    base, target = job.request.get("base", "BASE"), _target(job, result)
    done = f"extracted {job.request.get('model')} - {base} → {target}"
    return Outcome(done, _accuracy(result), f'graftwerk generate {base} -a {target} -p "Hello"')


def _combined(job: Job, result: CombineResult) -> Outcome:
    done = f"combined {' + '.join(_adapters(job.request))} → {_target(job, result)}"
    return Outcome(done, _accuracy(result), _next(result))


def _target(job: Job, result: MadeModel) -> str:
    return str(job.request.get("target") or result.model.name)


def _adapters(request: JsonObject) -> list[str]:
    return [adapter_label(adapter) for adapter in request.get("adapters", [])]


def _written(result: WrittenCheckpoint) -> str:
    if result.same_as:
        return f"reused from {result.same_as}"
    return f"{counted(result.tensors, 'tensor')}, {decimal(result.bytes_written)}"


def _logits(logits: LogitsComparison | None) -> str:
    if logits is None:
        return "logits not compared"
    if logits.largest_difference == 0:
        return "logits equal"
    return f"logits within {logits.relative_difference or 0:.1g} of their size"


def _accuracy(result: MadeAdapter) -> str:
    return f"rank {result.rank}, error {result.error:.2g}, {decimal(result.bytes_written)}"


def _next(result: MadeModel) -> str:
    """Returns the command that uses the new model, by its kind."""
    kind = "" if result.model.kind == "gguf" and result.model.adapter else result.model.kind
    return _NEXT.get(kind, "").format(name=result.model.name)


_NEXT = {
    "original": "graftwerk convert {name} {name}-hf",
    "huggingface": "graftwerk chat {name}",
    "gguf": "graftwerk pull {name}",
    "adapter": "graftwerk merge BASE --adapters {name} --target NEW-NAME",
    "unknown": "graftwerk models show {name}",
}

# ---- other jobs ---------------------------------------------------------------------------------------


def _published(job: Job, result: PublishToHubResult) -> Outcome:
    done = f"published {job.request.get('model')} → {result.url}"
    who = "private" if result.private else "public"
    return Outcome(done, f"{counted(result.files, 'file')}, {decimal(result.size_bytes)}, {who}")


def _verified(_: Job, result: VerifyResult) -> Outcome:
    done = f"verified {result.model} against its {', '.join(result.against)}"
    if not result.passed:
        return Outcome(done, f"NOT passed: {counted(len(result.differences), 'difference')}")
    found = [f"{result.digests_equal:,} digests equal"] if result.digests_equal is not None else []
    if result.rows_recomputed:
        found += [counted(result.rows_recomputed, "row"), _logits(result.logits)]
    return Outcome(done, f"passed ({', '.join(found)})")


def _generated(job: Job, result: GenerateResult) -> Outcome:
    count = result.answered if result.answered is not None else len(result.outputs)
    done = f"generated {counted(count, 'output')} with {job.request.get('model')}"
    figures = [counted(result.usage.completion_tokens, "token")] if result.usage else []
    figures.append(f"{result.tokens_per_second:,.3g} tokens/s")
    figures += [counted(result.failed, "prompt") + " failed"] if result.failed else []
    figures += [f"results in {result.results_file}"] if result.results_file else []
    return Outcome(done, ", ".join(figures))


def _compared(_: Job, result: CompareResult) -> Outcome:
    return Outcome(
        f"compared {counted(len(result.variants), 'model')}", counted(len(result.comparisons), "output")
    )


def _embedded(job: Job, result: EmbedResult) -> Outcome:
    done = f"embedded {counted(len(result.embeddings), 'text')} with {job.request.get('model')}"
    return Outcome(done, counted(result.usage.total_tokens, "token"))


def _scored(job: Job, result: PerplexityResult) -> Outcome:
    model = " + ".join([job.request.get("model", "?"), *_adapters(job.request)])
    score = "infinite" if result.perplexity is None else f"{result.perplexity:,.6g}"
    windows = f"{counted(result.windows, 'window')} of {result.context:,}"
    return Outcome(f"perplexity {score} of {model}", f"{counted(result.tokens, 'token')} in {windows}")


def _tokenized(job: Job, result: TokenizeResult) -> Outcome:
    model = " + ".join([job.request.get("model", "?"), *_adapters(job.request)])
    if result.texts is not None:
        return Outcome(f"detokenized {counted(len(result.texts), 'list')} of ids with {model}")
    ids = result.token_ids or []
    return Outcome(
        f"tokenized {counted(len(ids), 'text')} with {model}", counted(sum(map(len, ids)), "token")
    )


def _other(job: Job, _: object) -> Outcome:
    return Outcome(f"{job.title} succeeded")


_OUTCOMES: Mapping[type, Callable[[Job, Any], Outcome]] = {
    ImportResult: _imported,
    ConvertResult: _converted,
    MergeResult: _merged,
    ExtendTokenizerResult: _extended,
    ExtractResult: _extracted,
    CombineResult: _combined,
    PublishToHubResult: _published,
    VerifyResult: _verified,
    GenerateResult: _generated,
    CompareResult: _compared,
    EmbedResult: _embedded,
    PerplexityResult: _scored,
    TokenizeResult: _tokenized,
}
