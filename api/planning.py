"""Plans of submitted requests, from the volume, the queue and the workers."""

from api.state import state
from services.jobs.disk_reservations import DiskUse
from services.jobs.memory import check_capacity, check_kv_capacity
from services.jobs.webhook_client import check_webhook
from services.kinds import KINDS
from services.kinds.shared import JobRequest
from services.preflight import Limits, Plan, Servers


def plan_of(request: JobRequest) -> Plan:
    """Returns the plan of a request, or refuses it with the reason: see `AppState.preflight`, and `check_memory`."""
    check_webhook(request, state().settings)
    promised = state().queue.promised([str(job_id) for job_id in request.after])
    limits = Limits(unpack_bytes=state().settings.unpack_limit_bytes)
    disk_use = DiskUse(reserved_bytes=state().queue.reserved_bytes(state().store.staging.bytes_of))
    servers = Servers(state().served(request), state().hub)
    plan = state().preflight(request, promised, servers=servers, limits=limits, disk_use=disk_use)
    if not _is_quantized(request):
        check_memory(plan)
    return plan


def _is_quantized(request: JobRequest) -> bool:
    """Returns True if a loaded model takes less memory than its plan says."""
    fields = request.model_dump(mode="json")
    return any(part.get("quantization") for part in (fields, *fields.get("variants", [])))


def check_memory(plan: Plan) -> None:
    """Checks that a living worker has the memory that the plan needs; what GPUs need is checked when they load."""
    queue = KINDS[plan.kind].queue
    serving = [worker for worker in state().queue.workers() if worker.queue == queue]
    if any(worker.device != "cpu" for worker in serving):
        return
    totals = [worker.memory_bytes for worker in serving if worker.memory_bytes]
    if totals and len(totals) == len(serving):
        check_capacity(plan.peak_memory_bytes, max(totals))
    limits = [worker.kv_cache.limit_bytes for worker in serving if worker.kv_cache is not None]
    if plan.kv_cache_bytes is not None and limits and len(limits) == len(serving):
        check_kv_capacity(plan.kv_cache_bytes, max(limits))
