"""What people type, as Unicode text."""

import sys
from pathlib import Path

from graftwerk.models import UsageError


def cleaned(text: str) -> str:
    """The text without the remains of half-deleted characters.

    A terminal that deletes bytes, not characters, leaves the first bytes of a Chinese character behind; Python
    shows such bytes as lone surrogates (PEP 383), which no tokenizer and no JSON takes.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "ignore")
    except UnicodeEncodeError:
        return text.encode("utf-8", "ignore").decode("utf-8")


def read_text(name: str) -> str:
    """The text of a local file, or of stdin where the name is `-`.

    Raises:
        UsageError: the file is not there or is not UTF-8.
    """
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})", "Save it as UTF-8.") from error
