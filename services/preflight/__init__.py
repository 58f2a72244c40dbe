"""Preflight: what a request would read and write, and every reason to refuse it, from headers alone.

The API asks before it queues, the worker asks again before it works: between the two the volume may have changed.
"""

from collections.abc import Mapping

from services.backend import ServedModel
from services.errors import ModelExists
from services.jobs.disk_reservations import NO_DISK_USE, DiskUse
from services.kinds import JobRequest
from services.kinds.compare import CompareRequest
from services.kinds.convert import ConvertRequest
from services.kinds.extend_tokenizer import ExtendTokenizerRequest
from services.kinds.generate import GenerateRequest
from services.kinds.import_ import ImportRequest
from services.kinds.merge import MergeRequest
from services.kinds.verify import VerifyRequest
from services.models.store import ModelStore
from services.preflight.extend_tokenizer import plan_extend_tokenizer, tokenizer_file
from services.preflight.generate import (
    PARSED_BYTES,
    SCORED_TEXT_BYTES,
    ResidentRequest,
    check_asked,
    need_name_of_the_shelf,
    plan_answering,
    plan_compare,
    plan_forwarded,
)
from services.preflight.import_ import import_source, plan_import
from services.preflight.merge import (
    HASHED_BYTES,
    VERIFIED_FORMATS,
    plan_convert,
    plan_merge,
    plan_verify,
    weights_digest,
)
from services.preflight.plan import Plan, later

__all__ = [
    "HASHED_BYTES",
    "PARSED_BYTES",
    "SCORED_TEXT_BYTES",
    "VERIFIED_FORMATS",
    "Plan",
    "import_source",
    "preflight",
    "tokenizer_file",
    "weights_digest",
]

DISK_MARGIN_BYTES = 64 * 2**20
"""Kept free beside a job's output: headers, manifest, the server's own log."""


def preflight(
    request: JobRequest,
    store: ModelStore,
    promised: Mapping[str, JobRequest],
    *,
    digest_limit_bytes: int = HASHED_BYTES,
    served: ServedModel | None = None,
    claims: DiskUse = NO_DISK_USE,
) -> Plan:
    """What the request would do, or the reason why it cannot.

    Args:
        promised: models that are not there yet and that jobs before this one will make.
        digest_limit_bytes: weight files up to this size are digested to know published ones.
        served: the other server's model that answers a generate job, where one does.
        claims: what of the volume is taken or set aside already.

    Raises:
        ModelNotFound, SourceNotFound, ModelExists, WrongModelKind, UnsupportedOption, DiskFull, InvalidText, and whatever the
        headers of the inputs are refused for.
    """
    target = request.makes
    if target is not None and store.exists(target):
        raise ModelExists(
            f"a model named {target!r} is there already (letter case does not count)",
            "Choose another target, or delete that model first.",
        )
    if isinstance(request, ResidentRequest):
        check_asked(request, store)
    if isinstance(request, GenerateRequest):
        if served is not None:
            return plan_forwarded(request, served)
        need_name_of_the_shelf(request.model)
    waiting = [name for name in request.reads if name in promised]
    for name in request.reads:
        if name not in promised:
            store.path(name)
    if isinstance(request, ResidentRequest):
        plan = _plan_asking(request, store, waiting)
    elif waiting:
        plan = later(request, waiting)
    else:
        plan = _plan_making(request, store, digest_limit_bytes)
    return _with_disk(plan, store.free_bytes() + claims.staged_bytes, claims.reserved_bytes)


def _plan_making(request: JobRequest, store: ModelStore, digest_limit_bytes: int) -> Plan:
    """The plan of what makes a model, or checks one."""
    match request:
        case ImportRequest():
            return plan_import(request, store)
        case ConvertRequest():
            return plan_convert(request, store)
        case MergeRequest():
            return plan_merge(request, store, digest_limit_bytes)
        case ExtendTokenizerRequest():
            return plan_extend_tokenizer(request, store)
        case VerifyRequest():
            return plan_verify(request, store)
    raise AssertionError(request.kind)


def _plan_asking(request: ResidentRequest, store: ModelStore, waiting: list[str]) -> Plan:
    """The plan of what a loaded model of the shelf answers."""
    if isinstance(request, CompareRequest):
        return plan_compare(request, store, waiting)
    return plan_answering(request, store, waiting)


def _with_disk(plan: Plan, free_bytes: int, reserved_bytes: int) -> Plan:
    needed = plan.output_bytes + DISK_MARGIN_BYTES if plan.output_bytes else 0
    plan = plan.model_copy(
        update={
            "disk_needed_bytes": needed, "disk_free_bytes": free_bytes, "disk_reserved_bytes": reserved_bytes,
        }
    )  # fmt: skip
    plan.room(lambda job: 0).check(reserved_bytes)
    return plan
