"""One compare job: the same prompts and the same seed for one model after another, and where their answers part."""

import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from services.errors import GraftwerkError
from services.kinds.compare import CompareRequest, Variant
from services.kinds.generate import GenerateRequest
from worker.inference.generate import GenerateSession, Slice, answer_all
from worker.inference.model_cache import CachedModel, ModelCache
from worker.inference.result_sink import Entry, MemorySink
from worker.lifecycle import JobContext


@dataclass(frozen=True, slots=True)
class Compared:
    """One output of a variant, and its tokens as pieces: ids of two vocabularies do not compare."""

    entry: Entry
    pieces: Sequence[str]


class CompareSession:
    """The state of one compare job: its variants run one after another, as they may not fit in memory together."""

    def __init__(self, request: CompareRequest) -> None:
        self.request = request
        seed = request.sampling.seed
        self.seed = secrets.randbits(63) if seed is None else seed
        self._facts: list[dict[str, Any]] = []
        self._outputs: list[list[Compared]] = []  # by variant, then by prompt and answer
        self._error: GraftwerkError | None = None
        self._answered = 0

    @property
    def is_done(self) -> bool:
        """Whether every variant has answered."""
        return len(self._facts) == len(self.request.variants)

    @property
    def request_now(self) -> GenerateRequest:
        """What the next variant is asked."""
        return self.request.request_for(self._variant, self.seed)

    def begin(self, context: JobContext, resident: CachedModel) -> GenerateSession:
        """The next variant's prompts on its engine."""
        number, all_of_them = len(self._facts), len(self.request.variants)
        each = len(self.request.prompts or [None]) * self.request.sampling.n
        part = Slice(f"generating with {self._variant.name} ({number + 1} of {all_of_them})", number * each)
        return GenerateSession(self.request_now, context, resident, part)

    def take(self, asking: GenerateSession) -> None:
        """Keep what a variant has answered."""
        assert isinstance(asking.answers, MemorySink)
        answered = asking.answers.answered
        variant = self._variant
        names = {"label": variant.name, **variant.model_dump(exclude={"label"})}
        self._facts.append(names | (asking.facts() if answered else {}))
        piece = asking.resident.loaded.tokenizer.piece
        self._outputs.append(
            [
                Compared(entry, [piece(token_id) for token_id in entry.get("token_ids", [])])
                for outputs in asking.answers.outputs
                for entry in self._each(outputs)
            ]
        )
        self._answered += answered
        self._error = self._error or asking.first_error

    def result(self) -> Mapping[str, Any]:
        """The job's result. Raises the first prompt's error where no variant has an answer."""
        if self._error is not None and not self._answered:
            raise self._error
        rows = [list(row) for row in zip(*self._outputs, strict=True)]
        return {
            "seed": self.seed,
            "variants": self._facts,
            "comparisons": [self._comparison(row) for row in rows],
            "pairs": [self._pair(rows, pair) for pair in self._pairs],
        }

    @property
    def _variant(self) -> Variant:
        return self.request.variants[len(self._facts)]

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return list(combinations(range(len(self.request.variants)), 2))

    def _each(self, outputs: list[Entry]) -> list[Entry]:
        """One output for each of `n`, also where a prompt was refused as a whole."""
        return outputs if len(outputs) == self.request.sampling.n else outputs * self.request.sampling.n

    def _comparison(self, row: Sequence[Compared]) -> dict[str, Any]:
        differences = [
            {"variants": [self._facts[a]["label"], self._facts[b]["label"]], **difference(row[a], row[b])}
            for a, b in self._pairs
            if not _is_failed(row[a], row[b])
        ]
        return {
            "prompt": row[0].entry["prompt"],
            "outputs": [one.entry for one in row],
            "differences": differences,
        }

    def _pair(self, rows: Sequence[Sequence[Compared]], pair: tuple[int, int]) -> dict[str, Any]:
        """How many answers of two variants are equal, to the last token."""
        a, b = pair
        both = [row for row in rows if not _is_failed(row[a], row[b])]
        equal = sum(row[a].pieces == row[b].pieces for row in both)
        labels = [self._facts[a]["label"], self._facts[b]["label"]]
        return {"variants": labels, "equal": equal, "compared": len(both)}


def difference(one: Compared, other: Compared) -> dict[str, int | None]:
    """Where two answers first differ, counted from 0: the token and the character; None where they do not.

    A text that ends where the other goes on differs at its end.
    """
    return {
        "token": _first_difference(one.pieces, other.pieces),
        "character": _first_difference(one.entry["text"], other.entry["text"]),
    }


def compare_once(request: CompareRequest, context: JobContext) -> Mapping[str, Any]:
    """The result of a job that has each of its models to itself."""
    settings = context.settings
    comparing = CompareSession(request)
    residents = ModelCache(settings.device, sys.maxsize, settings.generate_slots)
    while not comparing.is_done:
        resident = residents.take(comparing.request_now, context)
        assert resident is not None  # the one before has been given up
        with closing(comparing.begin(context, resident)) as asking:
            answer_all(asking)
            comparing.take(asking)
        residents.drop(resident)
    return comparing.result()


def _first_difference(one: Sequence[str], other: Sequence[str]) -> int | None:
    shorter = min(len(one), len(other))
    different = (number for number in range(shorter) if one[number] != other[number])
    return next(different, None if len(one) == len(other) else shorter)


def _is_failed(*outputs: Compared) -> bool:
    return any("error" in one.entry for one in outputs)
