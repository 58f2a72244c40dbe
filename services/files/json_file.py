"""JSON files of models: read within bounds, checked value by value, written readably."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from pydantic_core import from_json

from services.errors import GraftwerkError, IncompleteCheckpoint, UnreadableFile
from services.files.json_budget import JsonBudget, excess
from services.files.regular_file import read_regular

Json = dict[str, Any]

JSON_LIMIT_BYTES = 32 * 2**20
"""Largest file that is read. The index of a model of ten thousand tensors takes about a megabyte."""

FILE_BUDGET = JsonBudget(containers=600_000, members=1_500_000, items=2_000_000, depth=64)
"""For configurations, indexes, manifests and headers: 200,000 tensors take 600,000 containers and 800,000 members."""


def parse_json(data: bytes, budget: JsonBudget = FILE_BUDGET) -> Any:
    """Returns a JSON value; half a surrogate pair in a string is an error, as in the parsers of Rust and Go.

    Raises:
        ValueError: It is beyond the budget, or not valid JSON.
    """
    check_budget(data, budget)
    return from_json(data)


def check_budget(data: bytes, budget: JsonBudget = FILE_BUDGET) -> None:
    """Checks JSON before it is parsed.

    Raises:
        ValueError: It is beyond the budget.
    """
    too_much = excess(data, budget)
    if too_much is not None:
        raise ValueError(f"it {too_much}")


def read_json(path: Path, unreadable: type[GraftwerkError] = UnreadableFile) -> Json:
    """Returns the JSON object in a file.

    Args:
        unreadable: Class of the error.

    Raises:
        UnreadableFile: The file is too large, has too many values, is not JSON, or holds another value than an object.
    """
    data = read_regular(path, JSON_LIMIT_BYTES, unreadable)
    try:
        value = parse_json(data)
    except ValueError as error:
        raise unreadable(f"{path.name} is not valid JSON ({error}).", "Fetch the file again.") from error
    if not isinstance(value, dict):
        raise unreadable(
            f"{path.name} holds a {type(value).__name__} instead of a JSON object.", "Fetch the file again."
        )
    return value


def read_json_if_present(path: Path, unreadable: type[GraftwerkError] = UnreadableFile) -> Json:
    """Returns the JSON object in a file, or an empty one if there is no such file.

    Raises:
        UnreadableFile: As `read_json`.
    """
    return read_json(path, unreadable) if path.is_file() else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes readable JSON; Chinese characters are not escaped."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def require(values: Json, key: str, kind: type[int] | type[float], *, file: str) -> Any:
    """Returns a positive number that a file must have.

    Raises:
        IncompleteCheckpoint: The number is missing, or is not a positive number of this kind.
    """
    value = values.get(key)
    if not is_number(value) or value <= 0 or (kind is int and value != int(value)):
        raise IncompleteCheckpoint(
            f"{file} has {key} = {value!r}; a positive number is needed.",
            f"Take {file} from the original download.",
        )
    return kind(value)


def optional(values: Json, key: str, default: float, *, file: str) -> Any:
    """Returns a positive number that a file may have, of the default's type.

    Raises:
        IncompleteCheckpoint: There is a value that is not a positive number.
    """
    return default if values.get(key) is None else require(values, key, type(default), file=file)


def is_number(value: object) -> TypeGuard[float]:
    """Returns True for a value from JSON that is a finite number within the range of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)
