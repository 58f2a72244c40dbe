"""`python -m services.preflight.reading`: describes folders of the volume, one after another, under limits."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.errors import GraftwerkError
from services.isolation.serving import serve
from services.kinds.generate import GenerateRequest
from services.models.store import ModelStore
from services.models.summary import describe_folder
from services.preflight import preflight


def describe(request: Mapping[str, str]) -> dict[str, Any]:
    """Returns the summary of a folder, and whether its model generates.

    Args:
        request: `root` of the volume and `name` of the model.
    """
    root, name = Path(request["root"]), request["name"]
    summary = describe_folder(root / name, name)
    generates = summary.kind == "huggingface" and not summary.problems and _generates(root, name)
    return {"summary": summary.model_dump(mode="json"), "generates": generates}


def _generates(root: Path, name: str) -> bool:
    try:
        preflight(GenerateRequest(kind="generate", prompt="", model=name), ModelStore(root), {})
    except (GraftwerkError, OSError):  # incomplete, quantized, or deleted at this moment
        return False
    return True


def answer(request: Mapping[str, str]) -> dict[str, Any]:
    """Returns what `describe` returns, or the class of an error that no reader should raise."""
    try:
        return describe(request)
    except MemoryError:
        raise
    except Exception as error:  # one odd folder must never hide the others
        logging.exception("the folder of the model %s cannot be described", request["name"])
        return {"fault": type(error).__name__}


if __name__ == "__main__":
    serve(answer)
