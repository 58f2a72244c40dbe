"""Where the answers of a generate job go: into its result, or line by line into a file on the volume."""

import json
import os
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from io import FileIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from services.models.store import LINES, PREDICTIONS
from worker.lifecycle import JobContext

SHOWN_PROMPTS = 10
"""The result of a job with a file of prompts has the outputs of so many of its first prompts."""

PIECE_BYTES = 2**20

Entry = dict[str, Any]
"""One output: an answer, or the error in its place."""


class ResultSink(Protocol):
    """Takes the outputs of one prompt after another, in the order in which they are complete."""

    @property
    def known(self) -> AbstractSet[int]:
        """The numbers of the prompts that need not be asked any more."""

    @property
    def answered(self) -> int:
        """How many prompts have an answer."""

    def put(self, number: int, prompt: str, outputs: list[Entry]) -> None:
        """Take the outputs of a prompt."""

    def save(self) -> None:
        """Put what was taken in its place."""

    def result(self) -> Mapping[str, Any]:
        """The part of the job's result that the answers are."""

    def close(self) -> None:
        """Let go of what is open."""


class MemorySink:
    """The answers in memory."""

    def __init__(self, prompts: int) -> None:
        self.known: AbstractSet[int] = frozenset()
        self.outputs: list[list[Entry]] = [[] for _ in range(prompts)]

    @property
    def answered(self) -> int:
        """How many prompts have an answer."""
        return sum(not _is_failed(outputs) for outputs in self.outputs)

    def put(self, number: int, prompt: str, outputs: list[Entry]) -> None:
        """Keep the outputs of a prompt."""
        self.outputs[number] = outputs

    def save(self) -> None:
        """Nothing: they stay in memory."""

    def result(self) -> Mapping[str, Any]:
        """All outputs in the prompts' order."""
        return {"outputs": [entry for outputs in self.outputs for entry in outputs]}

    def close(self) -> None:
        """Nothing is open."""


class JsonlSink:
    """The answers as lines of `results/<job>.jsonl`.

    The first line says what was asked. An execution that begins copies the answered lines of the one before it
    into a file of its own, which then takes the name: an execution that lost its job without knowing goes on
    writing into a file that has no name any more.
    """

    def __init__(self, context: JobContext, digest: str, prompts: int) -> None:
        """Raises ExecutionSuperseded, JobCanceled, OSError."""
        self._context = context
        self._prompts = prompts
        self._places: dict[int, tuple[int, int]] = {}  # offset and length of each prompt's line
        self._answered: set[int] = set()
        self._held: list[tuple[int, bytes]] = []
        header = {"job": context.execution.job_id, "asked": digest, "prompts": prompts}
        with self._replacing(LINES) as self._file:
            self._append(_line(header))
            for number, line in answered_lines(self._path(LINES), header):
                self._places[number] = self._append(line)
                self._answered.add(number)
        self.known: AbstractSet[int] = frozenset(self._answered)

    @property
    def answered(self) -> int:
        """How many prompts have an answer, those of earlier executions among them."""
        return len(self._answered)

    def put(self, number: int, prompt: str, outputs: list[Entry]) -> None:
        """Hold the line of a prompt until `save`. A prompt that was cut off is none: its job goes on elsewhere."""
        if any(output.get("finish_reason") == "canceled" for output in outputs):
            return
        line: dict[str, Any] = {"number": number, "prompt": prompt}
        if _is_failed(outputs):
            line["error"] = outputs[0]["error"]
        else:
            line["outputs"] = outputs
            self._answered.add(number)
        self._held.append((number, _line(line)))

    def save(self) -> None:
        """Write the lines that are held. Raises OSError."""
        while self._held:
            number, line = self._held.pop(0)
            self._places[number] = self._append(line)

    def result(self) -> Mapping[str, Any]:
        """Counts, the names of the files and the first outputs.

        Raises ExecutionSuperseded, JobCanceled, OSError.
        """
        self.save()
        self._reclaim()
        usage = self._write_predictions()
        return {
            "outputs": list(chain.from_iterable(islice(self._outputs(), SHOWN_PROMPTS))),
            "prompts": self._prompts,
            "answered": self.answered,
            "failed": self._prompts - self.answered,
            "resumed": len(self.known),
            "usage": usage,
            "results_file": f"results/{self._context.execution.job_id}{LINES}",
            "predictions_file": f"results/{self._context.execution.job_id}{PREDICTIONS}",
        }

    def _write_predictions(self) -> dict[str, int]:
        """Write what the scripts of 2023 wrote: a JSON list of `Input` and `Output`. Gives the sums of the usage."""
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        with self._replacing(PREDICTIONS) as file:
            before = b"[\n"
            for entry in chain.from_iterable(self._outputs()):
                row = {"Input": entry["prompt"], "Output": entry.get("text")}
                _write(file, before + json.dumps(row, ensure_ascii=False).encode())
                before = b",\n"
                for name, count in entry.get("usage", {}).items():
                    usage[name] += count
            _write(file, b"\n]\n")
        file.close()
        return usage

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _outputs(self) -> Iterator[list[Entry]]:
        """The outputs of each prompt in the prompts' order, read again from the file."""
        for number in range(self._prompts):
            offset, length = self._places[number]
            line = json.loads(os.pread(self._file.fileno(), length, offset))
            yield line.get("outputs") or [{"prompt": line["prompt"], "error": line["error"]}]

    def _reclaim(self) -> None:
        """Give the file its name again, should a superseded execution have taken it in the very last moment."""
        path = self._path(LINES)
        if path.is_file() and os.path.samestat(path.stat(), os.fstat(self._file.fileno())):
            return
        with self._file as mine, self._replacing(LINES) as self._file:
            mine.seek(0)
            while piece := mine.read(PIECE_BYTES):
                _write(self._file, piece)

    def _path(self, suffix: str) -> Path:
        return self._context.store.result(self._context.execution.job_id + suffix)

    def _replacing(self, suffix: str) -> AbstractContextManager[FileIO]:
        context = self._context
        name = context.execution.job_id + suffix
        return context.store.replacing_result(
            name, execution=context.execution.name, confirm=context.execution.ensure_current
        )

    def _append(self, line: bytes) -> tuple[int, int]:
        offset = self._file.seek(0, os.SEEK_END)
        _write(self._file, line)
        return offset, len(line)


def _is_failed(outputs: list[Entry]) -> bool:
    return all("error" in output for output in outputs)


def answered_lines(path: Path, header: Mapping[str, Any]) -> Iterator[tuple[int, bytes]]:
    """The lines of answered prompts in a file whose first line is `header`, each with its prompt's number.

    It ends at a torn line. A prompt that had an error is asked again.
    """
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


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _write(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]
