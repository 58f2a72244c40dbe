"""Sessions of jobs: on this worker, or on another server if that has the job's model."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import cast

import torch
from pydantic import ValidationError
from redis import Redis
from rq.job import Job as RQJob

from services.backend import Backend
from services.generate import resolve_device
from services.jobs.identity import service_identity
from services.jobs.memory import check_capacity, needed_memory, read_memory
from services.jobs.status import WaitingFor
from services.kinds import parse_request
from services.kinds.generate import GenerateRequest
from services.kinds.shared import JobRequest
from services.models.store import ModelStore
from services.settings import Settings
from worker.inference.memory_wait import MemoryWait
from worker.inference.remote import RemoteSession
from worker.inference.running_job import RunningJob
from worker.inference.session import Session, open_session


class SessionOpener:
    """Opens the sessions of one worker's jobs."""

    def __init__(
        self, redis: Redis, settings: Settings, memory_wait: MemoryWait, notify: Callable[[], None]
    ) -> None:
        """`notify` is called from other threads when there is news of another server."""
        self._redis, self._settings, self._memory_wait = redis, settings, memory_wait
        self._notify = notify
        self._store = ModelStore(settings.models_dir)
        self._backend = Backend.of(settings, lambda: service_identity(redis))
        self._lookups = ThreadPoolExecutor(max_workers=1, thread_name_prefix="backend-lookup")

    @cached_property
    def device_name(self) -> str:
        """Name of the device and of its model."""
        device = resolve_device(self._settings.device)
        return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)

    def memory_shortage(self, job: RQJob) -> WaitingFor | None:
        """Returns what a job waits for that is about to start; None too while another server may have its model."""
        try:
            request = parse_request(job.args[0])
        except ValidationError:
            return None  # it starts, and fails with that
        if self._backend is not None and request.is_forwardable:
            return None
        return self._memory_wait.check(job.id, request, self._store)

    def open(self, job: RunningJob) -> Session | None:
        """Returns the session of a job, None as long as it is not known which server has its model, or if it waits for memory.

        Raises:
            InsufficientMemory: its model never fits.
            GraftwerkError: as `open_session`.
        """
        self._check_capacity(job)
        request = parse_request(job.job.args[0])
        if self._backend is None or not request.is_forwardable:
            return open_session(request, job.context)
        if job.backend_lookup is None:
            # In a thread: the server may take seconds to answer.
            job.backend_lookup = self._lookups.submit(self._backend.models)
            job.backend_lookup.add_done_callback(lambda _: self._notify())
        if not job.backend_lookup.done():
            return None
        return self._forwarded(request, job, self._backend) or self._local(request, job)

    def _check_capacity(self, job: RunningJob) -> None:
        """Refuses a job whose model never fits into memory; a quantized one takes less than its plan says."""
        variants = job.job.args[0].get("variants") or [job.job.args[0]]
        if self.device_name == "cpu" and not any(variant.get("quantization") for variant in variants):
            check_capacity(needed_memory(self._redis, job.job.id), read_memory().total_bytes)

    def _forwarded(self, request: JobRequest, job: RunningJob, backend: Backend) -> Session | None:
        assert job.backend_lookup is not None
        model = job.backend_lookup.result().get(request.reads[0])
        if model is None:
            return None
        generate = cast(GenerateRequest, request)  # no other kind can be forwarded
        return RemoteSession(generate, job.context, backend=backend, model=model, notify=self._notify)

    def _local(self, request: JobRequest, job: RunningJob) -> Session | None:
        job.waiting_for = self._memory_wait.check(job.job.id, request, self._store)
        return None if job.waiting_for is not None else open_session(request, job.context)
