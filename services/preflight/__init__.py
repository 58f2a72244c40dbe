"""Preflight: the plan of a request, or the reason to refuse it, from headers alone.

The API runs it before it queues a job and the worker before it runs it: between the two the volume may have changed.
Each kind has a file here, named as `services.kinds.module_name` says, with a function `plan(request, inputs)`.
"""

from collections.abc import Callable, Collection
from importlib import import_module

from services.jobs.disk_reservations import NO_DISK_USE, DiskUse
from services.kinds import JobRequest, module_name
from services.models.store import ModelStore
from services.preflight.plan import NO_ARCHIVES, NO_SERVERS, Inputs, Limits, Plan, Servers

__all__ = ["Limits", "Plan", "Planner", "Servers", "plan_inputs", "preflight"]

Planner = Callable[[JobRequest, Inputs], Plan]
"""Function that makes a plan without the disk space: in this process, or in one with limits."""


def plan_inputs(request: JobRequest, inputs: Inputs) -> Plan:
    """Returns what the `plan` of the request's kind returns."""
    module = import_module(f"{__name__}.{module_name(request.kind)}")
    plan: Plan = module.plan(request, inputs)
    return plan


def preflight(
    request: JobRequest,
    store: ModelStore,
    promised: Collection[str],
    *,
    limits: Limits = NO_ARCHIVES,
    servers: Servers = NO_SERVERS,
    disk_use: DiskUse = NO_DISK_USE,
    planner: Planner = plan_inputs,
) -> Plan:
    """Returns the plan of a request, with the bytes to reserve for it (`disk_need`).

    Args:
        promised: names of models that are not there yet and that jobs before this one will make.
        limits: the settings' limits; without them no archive is accepted.
        servers: the Hub, and the model of another server that runs a generate job, if one does.
        disk_use: bytes of the volume that are taken or reserved already.
        planner: reads the headers.

    Raises:
        ModelExists: the target is there already.
        ModelNotFound: a model of the request is not on the volume.
        DiskFull: the output does not fit on the volume.
        GraftwerkError: any other reason, as the `plan` of the request's kind says.
    """
    if request.makes is not None:
        store.require_free(request.makes)
    plan = planner(request, Inputs(request, store, promised, limits, servers))
    return plan.with_disk(store, disk_use)
