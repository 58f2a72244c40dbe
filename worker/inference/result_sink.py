"""Destinations of a generate job's outputs: its result, or a file with one line per prompt on the volume."""

import json
import os
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from io import FileIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from services.kinds.generate import ComputedBy, GenerateResult, Output
from services.kinds.shared import Usage
from services.models.store import LINES, PREDICTIONS
from worker.lifecycle import JobContext

SHOWN_PROMPTS = 10
"""Number of prompts whose outputs are in the result of a job with a file of prompts."""

PIECE_BYTES = 2**20


class ResultSink(Protocol):
    """Takes the outputs of one prompt after another, in the order in which they are complete."""

    @property
    def completed(self) -> AbstractSet[int]:
        """Numbers of the prompts that an earlier execution has completed."""

    @property
    def answered(self) -> int:
        """Number of prompts with at least one output that is not an error."""

    def add(self, number: int, prompt: str, outputs: list[Output]) -> None:
        """Takes the outputs of a prompt."""

    def save(self) -> None:
        """Writes the outputs that were taken."""

    def result(self, computed: ComputedBy) -> GenerateResult:
        """Returns the result of the job."""

    def close(self) -> None:
        """Closes the file, if there is one."""


class MemorySink:
    """Keeps the outputs in memory."""

    def __init__(self, prompts: int) -> None:
        self.completed: AbstractSet[int] = frozenset()
        self.outputs: list[list[Output]] = [[] for _ in range(prompts)]

    @property
    def answered(self) -> int:
        """Number of prompts with at least one output that is not an error."""
        return sum(not _is_failed(outputs) for outputs in self.outputs)

    def add(self, number: int, prompt: str, outputs: list[Output]) -> None:
        """Keeps the outputs of a prompt."""
        self.outputs[number] = outputs

    def save(self) -> None:
        """Does nothing: the outputs stay in memory."""

    def result(self, computed: ComputedBy) -> GenerateResult:
        """Returns all outputs in the prompts' order."""
        outputs = [output for outputs in self.outputs for output in outputs]
        return GenerateResult(outputs=outputs, **_fields(computed))

    def close(self) -> None:
        """Does nothing."""


class JsonlSink:
    """Writes the outputs as lines of `results/<job>.jsonl`.

    The first line identifies the request. A new execution copies the lines of the previous one into a file of its own, which
    then replaces it: a superseded execution that is not aware of it keeps writing into a file without a name.
    """

    def __init__(self, context: JobContext, digest: str, prompts: int) -> None:
        """Copies what an earlier execution with the same digest has completed.

        Raises:
            ExecutionSuperseded, JobCanceled: the execution must not go on.
            OSError: the volume cannot be written.
        """
        self._context = context
        self._job_id = context.execution.job_id
        self._prompts = prompts
        self._places: dict[int, tuple[int, int]] = {}  # offset and length of each prompt's line
        self._answered: set[int] = set()
        self._pending: list[tuple[int, bytes]] = []
        header = {"job": self._job_id, "asked": digest, "prompts": prompts}
        with self._replacing(LINES) as self._file:
            self._append(_line(header))
            for number, line in completed_lines(self._path(LINES), header):
                self._places[number] = self._append(line)
                self._answered.add(number)
        self.completed: AbstractSet[int] = frozenset(self._answered)

    @property
    def answered(self) -> int:
        """Number of prompts with at least one output that is not an error, including those of earlier executions."""
        return len(self._answered)

    def add(self, number: int, prompt: str, outputs: list[Output]) -> None:
        """Keeps the line of a prompt until `save`; canceled outputs are dropped, since the job will be run again."""
        if any(output.finish_reason == "canceled" for output in outputs):
            return
        line: dict[str, object] = {"number": number, "prompt": prompt}
        if _is_failed(outputs):
            line["error"] = outputs[0].error.model_dump() if outputs[0].error else None
        else:
            line["outputs"] = [_fields(output) for output in outputs]
            self._answered.add(number)
        self._pending.append((number, _line(line)))

    def save(self) -> None:
        """Writes the pending lines. Raises OSError."""
        while self._pending:
            number, line = self._pending.pop(0)
            self._places[number] = self._append(line)

    def result(self, computed: ComputedBy) -> GenerateResult:
        """Returns the counts, the names of the files and the first outputs.

        Raises:
            ExecutionSuperseded, JobCanceled: the execution must not publish.
            OSError: the volume cannot be written.
        """
        self.save()
        self._reclaim()
        return GenerateResult(
            outputs=list(chain.from_iterable(islice(self._outputs(), SHOWN_PROMPTS))),
            prompts=self._prompts,
            answered=self.answered,
            failed=self._prompts - self.answered,
            resumed=len(self.completed),
            usage=self._write_predictions(),
            results_file=f"results/{self._job_id}{LINES}",
            predictions_file=f"results/{self._job_id}{PREDICTIONS}",
            **_fields(computed),
        )

    def _write_predictions(self) -> Usage:
        """Writes the format of Chinese-LLaMA-Alpaca's scripts, a JSON list of `Input` and `Output`; returns the total usage."""
        prompt_tokens = completion_tokens = 0
        with self._replacing(PREDICTIONS) as file:
            before = b"[\n"
            for output in chain.from_iterable(self._outputs()):
                row = {"Input": output.prompt, "Output": output.text}
                _write(file, before + json.dumps(row, ensure_ascii=False).encode())
                before = b",\n"
                if output.usage is not None:
                    prompt_tokens += output.usage.prompt_tokens
                    completion_tokens += output.usage.completion_tokens
            _write(file, b"\n]\n")
        file.close()
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _outputs(self) -> Iterator[list[Output]]:
        """Yields the outputs of each prompt in the prompts' order, read from the file."""
        for number in range(self._prompts):
            offset, length = self._places[number]
            line = json.loads(os.pread(self._file.fileno(), length, offset))
            outputs = line.get("outputs") or [{"prompt": line["prompt"], "error": line["error"]}]
            yield [Output.model_validate(output) for output in outputs]

    def _reclaim(self) -> None:
        """Restores the file under its name if a superseded execution has replaced it at the last moment."""
        path = self._path(LINES)
        if path.is_file() and os.path.samestat(path.stat(), os.fstat(self._file.fileno())):
            return
        with self._file as mine, self._replacing(LINES) as self._file:
            mine.seek(0)
            while piece := mine.read(PIECE_BYTES):
                _write(self._file, piece)

    def _path(self, suffix: str) -> Path:
        return self._context.store.result(self._job_id + suffix)

    def _replacing(self, suffix: str) -> AbstractContextManager[FileIO]:
        execution = self._context.execution
        return self._context.store.replacing_result(
            self._job_id + suffix, execution=execution.name, confirm=execution.ensure_current
        )

    def _append(self, line: bytes) -> tuple[int, int]:
        offset = self._file.seek(0, os.SEEK_END)
        _write(self._file, line)
        return offset, len(line)


def completed_lines(path: Path, header: Mapping[str, object]) -> Iterator[tuple[int, bytes]]:
    """Yields number and line of each prompt with outputs in a file whose first line is `header`, up to a torn line."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.readline() != _line(header):
            return
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                return
            if line.endswith(b"\n") and "outputs" in found:
                yield found["number"], line


def _is_failed(outputs: list[Output]) -> bool:
    return all(output.error is not None for output in outputs)


def _fields(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(exclude_unset=True)


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _write(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]
