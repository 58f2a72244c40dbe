"""Preflight of the API: plans are made in a process with limits, because the files of models are foreign.

Request and plan travel as JSON, and so does an error, with everything that it carries. What asks the Hub reads no headers and
stays in this process, which alone has the Hub's token.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from services import errors
from services.errors import GraftwerkError, InternalError, NotReady, ReadLimitExceeded
from services.isolation.limits import LimitExceeded, Limits, ProcessDied
from services.isolation.pool import NoProcessFree, ProcessPool
from services.kinds import JobRequest
from services.preflight import plan_inputs
from services.preflight.plan import Inputs, Plan

LIMITS = Limits(cpu_seconds=10, memory_bytes=2**30, seconds=60)
"""Limits of one folder or plan. A pickle of 100,000 tensors takes four seconds, a manifest of 32 MiB 350 megabytes."""

LIMIT_HINT = "Remove the files, or replace them with those of their publisher."

logger = logging.getLogger(__name__)


@cache
def header_processes() -> ProcessPool:
    """Returns the processes that read headers for this one."""
    return ProcessPool("services.preflight.reading", LIMITS)


class IsolatedPlanner:
    """Function that makes plans in a process with limits."""

    def __init__(self, processes: ProcessPool) -> None:
        self._processes = processes

    def __call__(self, request: JobRequest, inputs: Inputs) -> Plan:
        """Returns the plan of a request.

        Raises:
            ReadLimitExceeded: reading the headers took more time or memory than the limits allow.
            NotReady: the processes are busy, or the volume does not respond.
            GraftwerkError: as `plan_inputs`.
        """
        if request.asks_hub:
            return plan_inputs(request, inputs)
        try:
            answer = self._processes.call({"plan": _question(request, inputs)})
        except (LimitExceeded, ProcessDied) as error:
            raise _stopped(error) from error
        except NoProcessFree as error:
            raise NotReady(f"The request's files were not read: {error}.", "Try again later.") from error
        return plan_of_answer(answer)


def _stopped(error: LimitExceeded | ProcessDied) -> GraftwerkError:
    what = f"Reading the headers of the request's files {stop_reason(error)}"
    if is_of_clock(error):
        return NotReady(f"{what}: the volume or the machine does not respond.", "Try again later.")
    return ReadLimitExceeded(f"{what}: the files are damaged or hostile.", LIMIT_HINT)


def stop_reason(error: LimitExceeded | ProcessDied) -> str:
    """Returns the end of a sentence about a process that did not answer."""
    return f"took {error}" if isinstance(error, LimitExceeded) else f"ended its process: {error}"


def is_of_clock(error: LimitExceeded | ProcessDied) -> bool:
    """Returns True if the process had no processor or no data for too long, which is not the fault of the files."""
    return isinstance(error, LimitExceeded) and str(error).endswith(" s")


def _question(request: JobRequest, inputs: Inputs) -> dict[str, Any]:
    return {
        "root": str(inputs.store.root),
        "request": request.model_dump(mode="json"),
        "promised": inputs.waiting,
        "limits": asdict(inputs.limits),
        "engines": inputs.engines.as_json(),
        "served": None if inputs.served is None else asdict(inputs.served),
    }


def plan_as_answer(plan: Plan) -> dict[str, Any]:
    """Returns a plan as JSON, with the one field of it that responses leave out."""
    return {"plan": plan.model_dump(mode="json"), "linked_bytes": plan.linked_bytes}


def error_as_answer(error: GraftwerkError) -> dict[str, Any]:
    """Returns an error as JSON: its class and all that it carries."""
    return {"error": type(error).__name__, "fields": vars(error)}


def plan_of_answer(answer: Mapping[str, Any]) -> Plan:
    """Returns the plan of an answer.

    Raises:
        InternalError: an unexpected exception ended the reading.
        GraftwerkError: the error of the answer.
    """
    if "plan" in answer:
        return Plan(**answer["plan"], linked_bytes=answer["linked_bytes"])
    if "error" in answer:
        raise _error_of(answer)
    logger.error("A plan failed unexpectedly:\n%s", answer["traceback"])
    raise InternalError(
        f"Reading the headers of the request's files failed ({answer['fault']}).",
        "The API's log has the details.",
    )


def _error_of(answer: Mapping[str, Any]) -> GraftwerkError:
    fields = answer["fields"]
    error: GraftwerkError = getattr(errors, answer["error"])(fields["message"], fields["hint"])
    vars(error).update(fields)
    return error
