"""Chain of jobs in a YAML file: read, checked as a whole, and put into the order of submission."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from graftwerk.errors import UsageError
from graftwerk.import_source import default_target, is_local, parse_source
from graftwerk.request_parts import JsonObject
from graftwerk.text_input import read_text

FORM = "A chain is `jobs: [{name: …, kind: …, …fields of the request…, after: [names]}]`."


@dataclass(frozen=True, kw_only=True)
class Step:
    """One job of a chain.

    Attributes:
        name: its name in the file.
        line: line of the file, counted from 1.
        request: the request without `after`.
        after: names of the steps that it waits for, given and implied by its inputs.
        upload: local files that its import reads.
    """

    name: str
    line: int
    request: JsonObject
    after: tuple[str, ...]
    upload: Path | None = None


class Located(dict[str, Any]):
    """A mapping of the file, with the line at which it begins."""

    line = 0


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Loader that keeps lines, refuses repeated keys, and leaves dates as text."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Located:
    found = Located()
    found.line = node.start_mark.line + 1
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str) or key in found:
            problem = f"the key {key!r} is {'repeated' if isinstance(key, str) else 'not text'}"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: loader.construct_scalar(node))


def read_chain(file: Path) -> list[Step]:
    """Returns the steps of a chain, each behind those that it waits for.

    Raises:
        UsageError: the file cannot be read or is not a valid chain; the message names the line.
    """
    reader = _Reader(file)
    return reader.ordered(reader.steps(_parsed(file)))


def _parsed(file: Path) -> Any:
    try:
        return yaml.load(read_text(str(file)), _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{file}, line {line}: {error.problem}.", FORM) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{file} is not valid YAML.", FORM) from error


class _Reader:
    def __init__(self, file: Path) -> None:
        self._file = file

    def error(self, line: int, problem: str, hint: str = FORM) -> UsageError:
        return UsageError(f"{self._file}, line {line}: {problem}", hint)

    def steps(self, document: Any) -> list[Step]:
        """Returns the steps in the order of the file."""
        if not isinstance(document, Located) or set(document) != {"jobs"}:
            raise self.error(1, "The file has no list `jobs`, or other keys next to it.")
        entries = document["jobs"]
        if not isinstance(entries, list) or not entries:
            raise self.error(document.line, "`jobs` is not a list of jobs.")
        found: dict[str, Step] = {}
        makers: dict[str, str] = {}
        names = [self._name(entry, document.line) for entry in entries]
        for entry, name in zip(entries, names, strict=True):
            if name in found:
                raise self.error(
                    entry.line, f"The name {name!r} is used twice.", "Give each job a name of its own."
                )
            step = self._step(entry, name, names, makers)
            target = step.request.get("target")
            if isinstance(target, str) and target in makers:
                raise self.error(
                    entry.line, f"{makers[target]!r} makes {target!r} too.", "Choose another target."
                )
            found[name] = step
            makers |= {target: name} if isinstance(target, str) else {}
        return list(found.values())

    def _name(self, entry: Any, line: int) -> str:
        if not isinstance(entry, Located):
            raise self.error(line, f"{entry!r} is not a job.")
        for field in ("name", "kind"):
            if not isinstance(entry.get(field), str) or not entry[field]:
                raise self.error(entry.line, f"The job has no `{field}`.")
        return str(entry["name"])

    def _step(self, entry: Located, name: str, names: list[str], makers: Mapping[str, str]) -> Step:
        request = self._as_json(entry, name)
        after = request.pop("after", [])
        after = [after] if isinstance(after, str) else after
        if not isinstance(after, list) or not all(isinstance(item, str) for item in after):
            raise self.error(entry.line, f"`after` of {name!r} is not a list of names.")
        for other in after:
            if other not in names:
                hint = f"The names are {', '.join(names)}."
                raise self.error(
                    entry.line, f"{name!r} is after {other!r}, which is not a job of the file.", hint
                )
        upload = self._upload(request, entry.line)
        implied = (makers[read] for read in inputs(request) if read in makers)
        return Step(
            name=name,
            line=entry.line,
            request=request,
            after=tuple(dict.fromkeys((*after, *implied))),
            upload=upload,
        )

    def _as_json(self, entry: Located, name: str) -> JsonObject:
        fields = {field: value for field, value in entry.items() if field != "name"}
        try:
            found: JsonObject = json.loads(json.dumps(fields, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise self.error(entry.line, f"{name!r} has a value that JSON does not know: {error}.") from error
        return found

    def _upload(self, request: JsonObject, line: int) -> Path | None:
        """Completes the source and the target of an import, and returns its local files."""
        source = request.get("source")
        if request["kind"] != "import" or not source:
            return None
        text = source if isinstance(source, str) else source.get("path") or source.get("zip")
        if isinstance(source, str):
            request.setdefault("target", default_target(source))
        if isinstance(text, str) and is_local(text):
            path = self._file.parent / text
            if not path.exists():
                raise self.error(
                    line,
                    f"There is no local file or folder {str(path)!r}.",
                    "Paths are relative to the file.",
                )
            return path
        if isinstance(source, str):
            request["source"] = parse_source(source)
        return None

    def ordered(self, steps: Iterable[Step]) -> list[Step]:
        """Returns the steps in an order in which each one comes behind those that it waits for."""
        by_name = {step.name: step for step in steps}
        try:
            order = TopologicalSorter({step.name: step.after for step in by_name.values()}).static_order()
            return [by_name[name] for name in order]
        except CycleError as error:
            circle = list(reversed(error.args[1]))
            first = min((by_name[name] for name in circle), key=lambda step: step.line)
            raise self.error(
                first.line,
                f"The jobs wait for each other: {' after '.join(circle)}.",
                "Leave out one `after`.",
            ) from error


def inputs(request: JsonObject) -> Iterator[str]:
    """Yields the names of models and adapters that a request reads."""
    for part in (request, *_items(request, "variants")):
        if isinstance(part, dict):
            adapters = [
                item.get("name") if isinstance(item, dict) else item for item in _items(part, "adapters")
            ]
            found = [*(part.get(field) for field in ("source", "base", "model", "addition")), *adapters]
            yield from (name for name in found if isinstance(name, str))


def _items(part: JsonObject, field: str) -> list[Any]:
    value = part.get(field)
    return value if isinstance(value, list) else []
