"""Metadata of a GGUF file under its architecture's name: each value is asked for by type, and none is left over."""

import struct
from typing import Any

from services.errors import ConfigMismatch, IncompleteCheckpoint, UnsupportedFormat
from services.files.gguf_files import GgufModel
from services.files.gguf_header import GgufArray

SIZE_LIMIT = 2**31
"""Largest size or count of a configuration."""

FLAGS_SHOWN = 8
"""Number of flags that a message shows."""


class ArchitectureValues:
    """Values like `llama.block_count`, by the part of their key after the architecture's name.

    Raises:
        IncompleteCheckpoint: A value that is needed is missing.
        ConfigMismatch: A value has another type or is out of range.
    """

    def __init__(self, model: GgufModel) -> None:
        self._model = model
        self._prefix = f"{model.architecture}."
        self._read: set[str] = set()

    def _find(self, key: str) -> Any:
        self._read.add(key)
        return self._model.metadata.get(self._prefix + key)

    def size(self, key: str, default: int | None = None) -> int:
        """Returns a size or count of at least 1."""
        found = self._find(key)
        found = default if found is None else found
        if found is None:
            raise self._missing(key)
        if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found < SIZE_LIMIT:
            raise self._wrong(key, found, "a whole number from 1 on")
        return found

    def flags(self, key: str, length: int) -> list[bool] | None:
        """Returns an array of one flag for each of `length` layers, None if the file has a single value or none."""
        found = self._find(key)
        if not isinstance(found, GgufArray):
            return None
        flags = list(found.values or ())
        if len(flags) != length or not all(isinstance(flag, bool) for flag in flags):
            raise self._wrong(key, flags[:FLAGS_SHOWN], f"{length} flags, one for each layer")
        return flags

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a positive number, as the shortest decimal that the file's float32 stands for."""
        found = self._find(key)
        found = default if found is None else found
        if found is None:
            raise self._missing(key)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
            raise self._wrong(key, found, "a positive number")
        return shortest_decimal(float(found))

    def optional_size(self, key: str) -> int | None:
        """Returns a size, None if the file has none or has 0."""
        return self.size(key) if self._find(key) else None

    def optional_number(self, key: str) -> float | None:
        """Returns a positive number, None if the file has none."""
        return None if self._find(key) is None else self.number(key)

    def text(self, key: str) -> str | None:
        """Returns a text, None if the file has none."""
        found = self._find(key)
        if found is not None and not isinstance(found, str):
            raise self._wrong(key, found, "a text")
        return found

    def expect(self, key: str, *allowed: object) -> None:
        """Refuses a value that is not one of those that change nothing; an absent one passes.

        Raises:
            UnsupportedFormat: The value changes what the model computes.
        """
        found = self._find(key)
        if found is not None and found not in allowed:
            raise UnsupportedFormat(
                f"{self._model.name} says {self._prefix}{key} = {found!r}; taken is {' or '.join(map(repr, allowed))}.",
                "This model computes something that Graftwerk does not know of its family: use its Hugging Face files.",
            )

    def check_all_read(self) -> None:
        """Refuses values that were not asked for.

        Raises:
            UnsupportedFormat: There are some; the message names the first.
        """
        keys = (
            key.removeprefix(self._prefix) for key in self._model.metadata if key.startswith(self._prefix)
        )
        left = sorted(set(keys) - self._read)
        if left:
            raise UnsupportedFormat(
                f"{self._model.name} says {self._prefix}{left[0]} = {self._find(left[0])!r}, which is not known of this "
                "family.",
                "It may change what the model computes: use its Hugging Face files.",
            )

    def _missing(self, key: str) -> IncompleteCheckpoint:
        return IncompleteCheckpoint(
            f"{self._model.name} has no {self._prefix}{key}.",
            "Fetch the file again, or use its Hugging Face files.",
        )

    def _wrong(self, key: str, found: object, needed: str) -> ConfigMismatch:
        return ConfigMismatch(
            f"{self._model.name} says {self._prefix}{key} = {found!r}; it must be {needed}.",
            "The file is damaged or was made by another program: fetch it again.",
        )


def shortest_decimal(value: float) -> float:
    """Returns the decimal with the fewest digits that is the same float32: 1e-05 for 9.999999747378752e-06.

    A value that is not a float32 is returned as it is.
    """
    if _as_float32(value) != value:
        return value
    decimals = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((decimal for decimal in decimals if _as_float32(decimal) == value), value)


def _as_float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return float("nan")
