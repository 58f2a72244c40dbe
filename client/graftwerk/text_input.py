"""Text that people type or keep in files, as valid Unicode."""

import sys
from pathlib import Path

from graftwerk.errors import UsageError


def without_surrogates(text: str) -> str:
    """Returns the text without the remains of half-deleted characters.

    A terminal that deletes bytes, not characters, leaves the first bytes of a Chinese character behind. Python
    represents such bytes as lone surrogates (PEP 383), which neither tokenizers nor JSON accept.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "ignore")
    except UnicodeEncodeError:
        return text.encode("utf-8", "ignore").decode("utf-8")


def read_text(name: str) -> str:
    """Returns the text of a local file, or of stdin if the name is `-`.

    Raises:
        UsageError: the file cannot be read or is not UTF-8.
    """
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"The file {name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from error
