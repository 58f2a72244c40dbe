"""Several prompts at once, start to end: for jobs, scripts, notebooks and tests."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.errors import GraftwerkError
from services.generate.engine import Engine
from services.generate.loading import LoadedModel
from services.generate.prompts import BuiltPrompt
from services.generate.request import (
    AnswerFailed,
    AnswerFinished,
    Completion,
    GenerationRequest,
    TokenGenerated,
)
from services.progress import CheckCanceled, Progress, Report, ignore_progress, never_canceled
from services.sampling import Sampling


@dataclass(slots=True)
class PromptResult:
    """The answers to one prompt in order, or why there are none."""

    prompt: BuiltPrompt
    outputs: list[Completion] = field(default_factory=list)
    error: GraftwerkError | None = None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """All prompts in order. The rate counts the tokens of all answers together."""

    results: list[PromptResult]
    seconds: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def generate(
    loaded: LoadedModel,
    prompts: Sequence[BuiltPrompt],
    sampling: Sampling,
    *,
    slots: int = 8,
    report: Report = ignore_progress,
    check_canceled: CheckCanceled = never_canceled,
) -> GenerationResult:
    """Answer prompts together; one that fails keeps its error and does not touch the others.

    Args:
        slots: how many answers are written at once.
        report: told after each step how many tokens there are of how many at most.
        check_canceled: called before each step; what it raises ends everything.
    """
    started = time.monotonic()
    engine = Engine(loaded, slots=slots)
    results = [PromptResult(prompt) for prompt in prompts]
    by_id: dict[str, PromptResult] = {}
    for result in results:
        _submit(engine, result, sampling, by_id)
    done, total = 0, len(by_id) * sampling.n * sampling.max_new_tokens
    while engine.has_work:
        check_canceled()
        for event in engine.step():
            if isinstance(event, TokenGenerated):
                done += 1
                continue
            result = by_id[event.request_id]
            if isinstance(event, AnswerFinished):
                result.outputs.append(event.output)
                total -= sampling.max_new_tokens - len(event.output.token_ids)
            elif isinstance(event, AnswerFailed):
                result.error = event.error
                total -= sampling.max_new_tokens
        report(Progress("generating", done, max(done, total), "tokens"))
    for result in results:
        result.outputs.sort(key=lambda output: output.index)
    return GenerationResult(results, time.monotonic() - started, done)


def _submit(engine: Engine, result: PromptResult, sampling: Sampling, by_id: dict[str, PromptResult]) -> None:
    prompt = result.prompt
    request = GenerationRequest(
        prompt.token_ids, sampling, stop=prompt.stop, stop_token_ids=prompt.stop_token_ids
    )
    try:
        by_id[engine.submit(request)] = result
    except GraftwerkError as error:
        result.error = error
