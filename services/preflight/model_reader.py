"""Descriptions of the models on the volume, for the API: read in a process with limits, kept until the files change.

The files are foreign. A folder that hangs or kills its reader costs one process and some seconds once; it is described with that as
its problem until one of its files changes.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from services.errors import NotReady, ReadLimitExceeded, UnreadableFile
from services.generate_engines import Engines
from services.isolation.limits import LimitExceeded, ProcessDied
from services.isolation.pool import NoProcessFree, ProcessPool
from services.jobs.model_records import ModelRecords
from services.kinds.model_summary import ModelSummary
from services.models.base_offer import BaseOffer, hub_ids
from services.models.details import ModelDetails
from services.models.store import ModelStore
from services.models.tensor_list import TensorList
from services.preflight.isolated import LIMIT_HINT, is_of_clock, stop_reason

FILES_LIMIT = 10_000
"""Most files of a folder that is described."""

PARSED_LIMIT = 1024
PARSED_BYTES = 16_384
"""Most descriptions that stay parsed in a process, and the longest of them; most have a few kilobytes."""

VERSION = "4"
"""Changes with the content of descriptions, so that those of another version are read again."""


REFUSALS = {found.code: found for found in (ReadLimitExceeded, UnreadableFile)}
"""Class of each code that a description may have as its `refusal`."""

logger = logging.getLogger(__name__)


class ModelRecord(BaseModel):
    """Description of a folder as it is kept.

    Attributes:
        state: Digest over the engines, and the path, inode, size and times of each file.
        generates: A generate job of the model would be accepted.
        refusal: Code of the error of every request for it, empty if there is none: its reader was stopped, died or failed.
    """

    state: str
    summary: ModelSummary
    generates: bool = False
    refusal: str = ""

    def described(self, engines: Engines) -> ModelSummary:
        """Returns the summary with the engine that generates with the model."""
        engine = engines.of(self.summary.kind) if self.generates else None
        return self.summary if engine is None else self.summary.model_copy(update={"engine": engine})


class ModelReader:
    """Descriptions of all models of a volume."""

    def __init__(
        self,
        store: ModelStore,
        records: ModelRecords,
        processes: ProcessPool,
        engines: Callable[[], Engines] = Engines,
    ) -> None:
        """`engines` returns those of the service's workers."""
        self._engines = engines
        self._store = store
        self._records = records
        self._processes = processes

    def models(self) -> list[ModelSummary]:
        """Returns the summary of every model, by name, without those that are deleted meanwhile."""
        found = self.all()
        bases, engines = _bases(found), self._engines()
        return [bases.complete(record.described(engines)) for record in found]

    def describe(self, name: str) -> ModelSummary:
        """Returns the summary of one model.

        Raises:
            InvalidName, ModelNotFound: as `ModelStore.path`.
        """
        self._store.path(name)
        engines = self._engines()
        summary = self._current(name, self._records.get(name), engines).described(engines)
        return BaseOffer(lambda: hub_ids(record.summary for record in self.all())).complete(summary)

    def all(self) -> list[ModelRecord]:
        """Returns the description of every model, by name."""
        names, kept, engines = self._store.names(), self._records.all(), self._engines()
        found = [self._current(name, kept.get(name), engines) for name in names]
        self._records.drop(kept.keys() - set(names))
        present = {*self._store.names()}
        return [record for record in found if record.summary.name in present]

    def require_readable(self, names: Iterable[str]) -> None:
        """Checks that no reader was stopped at these models, before it is tried again for a plan.

        Raises:
            ReadLimitExceeded: one was.
            UnreadableFile: one has failed.
        """
        engines = self._engines()
        for name in {*names} & {*self._store.names()}:
            record = self._current(name, self._records.get(name), engines)
            if record.refusal:
                problem = f"{name}: {record.summary.problems[0]}"
                raise REFUSALS[record.refusal](problem, LIMIT_HINT)

    def details(self, name: str) -> ModelDetails:
        """Returns the details of a model for its own page. Raises what `path` raises, and UnreadableFile."""
        return ModelDetails.model_validate(self._ask("details", name))

    def tensors(self, name: str, search: str = "", *, offset: int = 0, limit: int = 100) -> TensorList:
        """Returns the part of a model's tensors whose names contain a text. Raises what `path` raises, and UnreadableFile."""
        found = self._ask("tensors", name, search=search, offset=offset, limit=limit)
        return TensorList.model_validate(found)

    def _ask(self, handler: str, name: str, **arguments: Any) -> dict[str, Any]:
        self._store.path(name)
        self.require_readable([name])
        try:
            answer = self._call(handler, name, **arguments)
        except (LimitExceeded, ProcessDied) as error:
            raise UnreadableFile(
                f"Reading {name} {stop_reason(error)}.", "Its files are damaged or hostile."
            ) from error
        except NoProcessFree as error:
            raise NotReady(f"{name} was not read: {error}.", "Try again later.") from error
        if "fault" in answer:
            logger.error("The model %s cannot be read:\n%s", name, answer["traceback"])
            raise UnreadableFile(f"{name} cannot be read ({answer['fault']}).", "Its files are damaged.")
        return answer

    def _call(self, handler: str, name: str, **arguments: Any) -> dict[str, Any]:
        question = {"root": str(self._store.root), "name": name, **arguments}
        answer: dict[str, Any] = self._processes.call({handler: question})
        return answer

    def _current(self, name: str, kept: bytes | None, engines: Engines) -> ModelRecord:
        state = _state_of(f"{self._store.root}/{name}", engines)
        record = None if kept is None else _parsed(kept) if len(kept) > PARSED_BYTES else _parsed_once(kept)
        return record if record is not None and record.state == state else self._read(name, state, engines)

    def _read(self, name: str, state: str | None, engines: Engines) -> ModelRecord:
        if state is None:
            problem = f"The folder holds more than {FILES_LIMIT} files."
            return _refused(name, "", problem, ReadLimitExceeded.code)
        try:
            answer = self._call("describe", name, engines=engines.as_json())
        except (LimitExceeded, ProcessDied) as error:
            problem = f"Reading its headers {stop_reason(error)}: the files are damaged or hostile."
            record = _refused(name, state, problem, ReadLimitExceeded.code)
            if is_of_clock(error):
                return record
        except NoProcessFree as error:
            raise NotReady(f"{name} was not read: {error}.", "Try again later.") from error
        else:
            record = _of_answer(name, state, answer)
        self._records.keep(name, record.model_dump_json().encode())
        return record


def _parsed(kept: bytes) -> ModelRecord | None:
    """Returns a description as it is kept; None for one of another version."""
    try:
        return ModelRecord.model_validate_json(kept)
    except ValidationError:
        return None


_parsed_once = lru_cache(PARSED_LIMIT)(_parsed)


def _of_answer(name: str, state: str, answer: dict[str, Any]) -> ModelRecord:
    if "fault" in answer:
        logger.error("The folder of the model %s cannot be described:\n%s", name, answer["traceback"])
        problem = f"Its headers cannot be read ({answer['fault']}): the files are damaged."
        return _refused(name, state, problem, UnreadableFile.code)
    return ModelRecord(state=state, **answer)


def _refused(name: str, state: str, problem: str, code: str) -> ModelRecord:
    summary = ModelSummary(name=name, kind="unknown", size_bytes=0, problems=[problem])
    return ModelRecord(state=state, summary=summary, refusal=code)


def _bases(records: list[ModelRecord]) -> BaseOffer:
    return BaseOffer(lambda: hub_ids(record.summary for record in records))


def _state_of(folder: str, engines: Engines) -> str | None:
    """Returns a digest of the engines and of the state of all files, None if there are too many."""
    lines = [VERSION, engines.setting, *sorted(engines.available)]
    for line in _file_states(folder):
        lines.append(line)
        if len(lines) > FILES_LIMIT:
            return None
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def _file_states(folder: str) -> Iterator[str]:
    pending = [folder]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))  # a third of the time of os.walk and os.stat
        except OSError:  # deleted, or not readable
            continue
        for entry in entries:
            try:
                found = entry.stat()
            except OSError:
                yield f"{entry.path} unreadable"
                continue
            yield f"{entry.path} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
