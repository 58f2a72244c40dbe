"""Session of a compare job: the same prompts and the same seed for one model after another, and the differences."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from services.errors import GraftwerkError
from services.generate import Event
from services.kinds.compare import (
    CompareRequest,
    CompareResult,
    Comparison,
    FirstDifference,
    PairCount,
    Variant,
    VariantSummary,
)
from services.kinds.generate import GenerateRequest, Output
from services.sampling import SEED_BITS
from worker.inference.cached_model import CachedModel
from worker.inference.engine_choice import generating_key
from worker.inference.generate import GenerateSession
from worker.inference.model_key import ModelKey
from worker.inference.output_collector import Slice
from worker.inference.result_sink import MemorySink
from worker.lifecycle import JobContext


@dataclass(frozen=True, slots=True)
class ComparedOutput:
    """One output of a variant, and its tokens as pieces: ids of two vocabularies are not comparable."""

    output: Output
    pieces: Sequence[str]


class CompareSession:
    """Runs the variants of one compare request one after another, as they may not fit into memory together."""

    def __init__(self, request: CompareRequest, context: JobContext) -> None:
        self._request, self._context = request, context
        seed = request.sampling.seed
        self._seed = secrets.randbits(SEED_BITS) if seed is None else seed
        self._inner: GenerateSession | None = None
        self._summaries: list[VariantSummary] = []
        self._outputs: list[list[ComparedOutput]] = []  # by variant, then by prompt and output
        self._error: GraftwerkError | None = None
        self._answered = 0

    @property
    def done(self) -> bool:
        """True once every variant is done."""
        return len(self._summaries) == len(self._request.variants)

    @property
    def has_prompts(self) -> bool:
        """True while prompts of the current variant wait for a free slot of the engine."""
        return self._inner is not None and self._inner.has_prompts

    def needs(self) -> ModelKey | None:
        """Returns the key of the current variant's model, or of the last one's at the end. Raises ModelNotFound."""
        if self._inner is not None:
            return self._inner.needs()
        if self.done:
            return None
        context = self._context
        return generating_key(self._variant_request, context.store, context.settings.generate_engine)

    def attach(self, model: CachedModel) -> None:
        """Starts the next variant on its model."""
        number, count = len(self._summaries), len(self._request.variants)
        outputs = len(self._request.prompts or [None]) * self._request.sampling.n
        part = Slice(f"generating with {self._variant.name} ({number + 1} of {count})", number * outputs)
        self._inner = GenerateSession(self._variant_request, self._context, part)
        self._inner.attach(model)

    def step(self) -> None:
        """Submits the current variant's next prompt, or ends the variant if all its outputs are there."""
        if self._inner is None:
            return
        if not self._inner.done:
            self._inner.step()
            return
        model = self._inner.model
        self._finish_variant(self._inner)
        if not self.done and self.needs() == model.key:
            self.attach(model)

    def on_event(self, event: Event) -> None:
        """Takes an event of the current variant."""
        if self._inner is not None:
            self._inner.on_event(event)

    def report(self) -> None:
        """Reports the current variant's progress and publishes its new text."""
        if self._inner is not None:
            self._inner.report()

    def result(self) -> CompareResult:
        """Returns the comparison. Raises the first error if every prompt failed for every variant."""
        if self._error is not None and not self._answered:
            raise self._error
        rows = [list(row) for row in zip(*self._outputs, strict=True)]
        return CompareResult(
            seed=self._seed,
            variants=self._summaries,
            comparisons=[self._comparison(row) for row in rows],
            pairs=[self._pair(rows, pair) for pair in self._pairs],
        )

    def cancel(self) -> None:
        """Ends the current variant's requests. May be called from any thread."""
        inner = self._inner  # read once: another thread may end the variant
        if inner is not None:
            inner.cancel()

    def close(self) -> None:
        """Closes the current variant's session."""
        if self._inner is not None:
            self._inner.close()

    @property
    def _variant(self) -> Variant:
        return self._request.variants[len(self._summaries)]

    @property
    def _variant_request(self) -> GenerateRequest:
        return self._request.request_for(self._variant, self._seed)

    def _finish_variant(self, session: GenerateSession) -> None:
        sink = session.outputs.sink
        assert isinstance(sink, MemorySink)  # a comparison has no file of prompts
        variant = self._variant
        fields = {"label": variant.name, **variant.model_dump(exclude={"label"})}
        if sink.answered:
            fields |= session.computed().model_dump(exclude={"adapters"})
        piece = session.model.loaded.tokenizer.piece
        self._outputs.append(
            [
                ComparedOutput(output, [piece(token_id) for token_id in output.token_ids or []])
                for outputs in sink.outputs
                for output in self._each(outputs)
            ]
        )
        self._answered += sink.answered
        self._error = self._error or session.outputs.first_error
        self._summaries.append(VariantSummary.model_validate(fields))
        session.close()
        self._inner = None

    def _each(self, outputs: list[Output]) -> list[Output]:
        """Returns `n` outputs, also for a prompt that was refused as a whole."""
        n = self._request.sampling.n
        return outputs if len(outputs) == n else outputs * n

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return list(combinations(range(len(self._request.variants)), 2))

    def _labels(self, pair: tuple[int, int]) -> list[str]:
        return [self._summaries[number].label for number in pair]

    def _comparison(self, row: Sequence[ComparedOutput]) -> Comparison:
        differences = []
        for pair in self._pairs:
            one, other = (row[number] for number in pair)
            if not _is_failed(one, other):
                token, character = first_difference(one, other)
                differences.append(
                    FirstDifference(variants=self._labels(pair), token=token, character=character)
                )
        return Comparison(
            prompt=row[0].output.prompt,
            outputs=[compared.output for compared in row],
            differences=differences,
        )

    def _pair(self, rows: Sequence[Sequence[ComparedOutput]], pair: tuple[int, int]) -> PairCount:
        a, b = pair
        both = [row for row in rows if not _is_failed(row[a], row[b])]
        equal = sum(row[a].pieces == row[b].pieces for row in both)
        return PairCount(variants=self._labels(pair), equal=equal, compared=len(both))


def open_session(request: CompareRequest, context: JobContext) -> CompareSession:
    """Returns the session of a compare job."""
    return CompareSession(request, context)


def first_difference(one: ComparedOutput, other: ComparedOutput) -> tuple[int | None, int | None]:
    """Returns the index of the first token and of the first character that differ, each None if none does.

    If one output is the beginning of the other, they differ at its end.
    """
    texts = one.output.text or "", other.output.text or ""
    return _first_difference(one.pieces, other.pieces), _first_difference(*texts)


def _first_difference(one: Sequence[str], other: Sequence[str]) -> int | None:
    shorter = min(len(one), len(other))
    different = (number for number in range(shorter) if one[number] != other[number])
    return next(different, None if len(one) == len(other) else shorter)


def _is_failed(*outputs: ComparedOutput) -> bool:
    return any(compared.output.error is not None for compared in outputs)
