"""`python -m services.preflight.reading`: reads the headers of models under limits, for descriptions and for plans."""

import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from services.backend import ServedModel
from services.errors import GraftwerkError, UnreadableFile
from services.generate_engines import Engines
from services.isolation.serving import serve
from services.kinds import KINDS, module_name, parse_request
from services.kinds.generate import GenerateRequest
from services.models.details import read_details
from services.models.incoming import list_incoming
from services.models.store import ModelStore
from services.models.summary import describe_folder
from services.models.tensor_list import list_tensors
from services.models.volume import forget_volumes
from services.preflight import plan_inputs, preflight
from services.preflight.isolated import error_as_answer, plan_as_answer
from services.preflight.plan import Inputs, Limits, Servers

TRACEBACK_CHARACTERS = 20_000
"""Longest part of a traceback, its end, that is returned for the log."""


def describe(question: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the summary of a folder, and whether its model generates.

    Args:
        question: `root` of the volume, `name` of the model, and the `engines` of the workers.
    """
    root, name, engines = Path(question["root"]), question["name"], Engines.from_json(question["engines"])
    summary = describe_folder(root / name, name)
    generates = not summary.problems and _generates(root, name, engines)
    return {"summary": summary.model_dump(mode="json"), "generates": generates}


def _generates(root: Path, name: str, engines: Engines) -> bool:
    request = GenerateRequest(kind="generate", prompt="", model=name)
    try:
        preflight(request, ModelStore(root), {}, servers=Servers(engines=engines))
    except (GraftwerkError, OSError):  # incomplete, quantized, or deleted at this moment
        return False
    return True


def plan(question: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the plan of a request, or the error that refuses it.

    Args:
        question: as `IsolatedPlanner` sends it.
    """
    served = question["served"]
    request = parse_request(question["request"])
    inputs = Inputs(
        request,
        ModelStore(Path(question["root"])),
        question["promised"],
        Limits(**question["limits"]),
        Servers(
            None if served is None else ServedModel(**served), engines=Engines.from_json(question["engines"])
        ),
    )
    try:
        return plan_as_answer(plan_inputs(request, inputs))
    except GraftwerkError as error:
        return error_as_answer(error)
    except OSError as error:  # deleted at this moment, or a damaged file system
        name = "" if error.filename is None else f" {Path(error.filename).name}"
        return error_as_answer(
            UnreadableFile(f"A file{name} of the request cannot be read: {error.strerror}.", "Try again.")
        )


def details(question: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the details of a model.

    Args:
        question: as that of `describe`.
    """
    return read_details(Path(question["root"]) / question["name"]).model_dump(mode="json")


def tensors(question: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a part of the tensors of a model.

    Args:
        question: as that of `describe`, with `search`, `offset` and `limit`.
    """
    folder = Path(question["root"]) / question["name"]
    found = list_tensors(folder, question["search"], question["offset"], question["limit"])
    return found.model_dump(mode="json")


def incoming(question: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the list of `incoming/`.

    Args:
        question: `root` of the volume and `unpack_limit_bytes` of archives.
    """
    found = list_incoming(Path(question["root"]), unpack_limit_bytes=question["unpack_limit_bytes"])
    return found.model_dump(mode="json")


HANDLERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "describe": describe, "details": details, "tensors": tensors, "plan": plan, "incoming": incoming,
}  # fmt: skip


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the handler's answer to a question, or class and traceback of an error that no reader should raise.

    Args:
        request: the question, under the name of its handler.
    """
    forget_volumes()  # the caller has checked the volume
    ((name, question),) = request.items()
    try:
        return HANDLERS[name](question)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (one odd folder must never hide the others)
        return {
            "fault": type(error).__name__,
            "traceback": traceback.format_exc()[-TRACEBACK_CHARACTERS:],
        }


def main() -> None:
    """Imports the preflight of every kind, which would be part of the first request's time, then answers requests."""
    for kind in KINDS:
        import_module(f"services.preflight.{module_name(kind)}")
    serve(answer)


if __name__ == "__main__":
    main()
