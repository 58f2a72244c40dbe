"""Parts of pydantic models and of their errors that several packages share: fields that are left out, reasons of refusals."""

_PREFIX = "Value error, "
"""Prefix that pydantic puts before the message of a ValueError."""


def is_none(value: object) -> bool:
    """Returns True for a field that is left out: `exclude_if` of a newer field, so that the JSON of older requests stays the same."""
    return value is None


def reason_of(message: str) -> str:
    """Returns the message of a validation error as the validator has raised it."""
    return message.removeprefix(_PREFIX)
