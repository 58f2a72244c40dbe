"""Names of models: a model is a folder of this name on the volume."""

import re

MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
"""Characters and length that a model name may have."""

SERVED_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,255}$"
"""Names of models on another server, such as `llama3:8b` or `org/name`."""

RESERVED_NAMES = ("incoming", "results")
"""Folders of the volume that are not models, in lower case."""

NAME_RULE = (
    "Names begin with a letter or digit and have up to 96 letters, digits, dots, dashes and underscores."
)


def is_reserved(name: str) -> bool:
    """Returns True for a folder of the volume that is not a model, ignoring case."""
    return name.lower() in RESERVED_NAMES


def is_model_name(name: str) -> bool:
    """Returns True if a model may have this name."""
    return re.fullmatch(MODEL_NAME_PATTERN, name) is not None and not is_reserved(name)
