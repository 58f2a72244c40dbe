"""The queue of the API: submits, lists, cancels, retries and deletes jobs, and lists workers."""

import logging
from collections.abc import Callable, Sequence
from uuid import uuid4

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError
from redis.retry import Retry as RedisRetry
from rq.utils import as_text

from services.errors import (
    JobAlreadyEnded,
    JobCanceled,
    JobNotEnded,
)
from services.jobs.deliveries import Delivery, read_deliveries, redeliver
from services.jobs.disk_reservations import DiskNeed, reserved_bytes
from services.jobs.events import publish_status
from services.jobs.finalization import end_waiting
from services.jobs.identity import service_identity
from services.jobs.indexes import forget
from services.jobs.listing import ALL_JOBS, JobFilter, count_jobs, list_jobs
from services.jobs.open_jobs import OpenJob, read_open
from services.jobs.queue_limits import QueueLimits
from services.jobs.records import (
    active_ids,
    fetch,
    log_key,
    reaching_redis,
    read_job,
    read_jobs,
    read_record,
    read_records,
    record_key,
)
from services.jobs.statistics import Statistics, read_statistics
from services.jobs.status import ENDED, Job, WorkerState
from services.jobs.submission import TASK, UNKNOWN_ORIGIN, Origin, Submission
from services.jobs.webhook_client import check_webhook
from services.jobs.worker_states import read_workers
from services.kinds import parse_request
from services.kinds.shared import JobRequest
from services.logs import log_ids
from services.settings import Settings

API_TIMEOUT_SECONDS = 4
"""Time that a request to the API waits for a reply of Redis."""


def connect(settings: Settings, client_name: str | None = None) -> Redis:
    """Returns the connection of this process. Blocking reads must be shorter than the socket timeout of 15 s.

    Args:
        client_name: name that Redis shows for each connection; that of a worker shows that the worker is alive.
    """
    return Redis.from_url(
        settings.redis_address,
        client_name=client_name,
        protocol=2,  # the replies of streams differ between the two
        socket_timeout=15,
        socket_connect_timeout=3,
        health_check_interval=30,
        max_connections=2000,  # each reader of an event stream keeps one
        retry=RedisRetry(ExponentialWithJitterBackoff(base=0.05, cap=1), retries=5),
    )


def connect_api(settings: Settings) -> Redis:
    """Returns the connection for requests to the API: a Redis that does not answer ends them within 5 s.

    A lost connection is opened again, a silent one is not asked twice. Event streams, which wait longer, use `connect`.
    """
    return Redis.from_url(
        settings.redis_address,
        protocol=2,
        socket_timeout=API_TIMEOUT_SECONDS,
        socket_connect_timeout=3,
        health_check_interval=30,
        max_connections=2000,
        retry=RedisRetry(ExponentialWithJitterBackoff(base=0.05, cap=0.2), 2, (ConnectionError,)),
    )


logger = logging.getLogger("graftwerk.jobs")


class JobQueue:
    """All jobs, for the API. Every method raises NotReady if Redis does not answer."""

    def __init__(
        self, redis: Redis, settings: Settings, *, streams: Redis | None = None, task: str = TASK
    ) -> None:
        """Opens the queue.

        Args:
            redis: the connection for everything that answers at once.
            settings: the settings of this process.
            streams: the connection for reads that wait for events; the same by default.
            task: name of the function that a worker calls.
        """
        self.redis = redis
        self.streams = streams if streams is not None else redis
        self.settings = settings
        self.limits = QueueLimits.of(settings)
        self.task = task

    @reaching_redis()
    def submit(
        self,
        request: JobRequest,
        job_id: str | None = None,
        *,
        retention_seconds: int | None = None,
        need: DiskNeed | None = None,
        memory_bytes: int = 0,
        origin: Origin = UNKNOWN_ORIGIN,
    ) -> tuple[Job, bool]:
        """Queues a job and returns it, or the existing job with this `job_id`; the flag is True for a new one.

        Args:
            request: the request of the job.
            job_id: id of the job; None for a new id.
            retention_seconds: time that the record is kept once the job has ended; None for the setting's.
            need: bytes to reserve on the volume.
            memory_bytes: peak memory of the plan, 0 if it is not known.
            origin: who submits it.

        Raises:
            DiskFull: other jobs have reserved the free bytes.
            IdempotencyConflict: the id belongs to a job with another request.
            InvalidRequest: this service cannot send the request's webhook.
            JobNotFound: `after` names an unknown job.
            UpstreamFailed: `after` names a job that failed or was canceled.
            QueueFull: the number of waiting jobs has reached a limit.
            ModelExists: an unfinished job makes a model of the same name.
        """
        check_webhook(request, self.settings)
        submission = Submission(
            redis=self.redis,
            limits=self.limits,
            job_timeout_seconds=self.settings.job_timeout_seconds,
            origin=origin,
            task=self.task,
            request=request,
            job_id=job_id or str(uuid4()),
            retention_seconds=retention_seconds or self.settings.job_retention_seconds,
            need=need,
            memory_bytes=memory_bytes,
        )
        is_new = submission.commit()
        job = read_job(self.redis, submission.job_id)
        if is_new:
            with log_ids(job=job.id):
                logger.info("Job %s of kind %s is queued.", job.id, job.kind)
            publish_status(self.redis, job)
        return job, is_new

    @reaching_redis()
    def get(self, job_id: str) -> Job:
        """Returns one job.

        Raises:
            JobNotFound: the job does not exist.
        """
        return read_job(self.redis, job_id)

    @reaching_redis()
    def note(self, job_id: str) -> str | None:
        """Returns the note that a job was submitted with, None without one."""
        note = self.redis.hget(record_key(job_id), "note")
        return None if note is None else as_text(note)

    @reaching_redis()
    def list(
        self, selected: JobFilter = ALL_JOBS, *, limit: int = 50, after: str | None = None
    ) -> tuple[list[Job], str | None]:
        """Returns jobs, newest first, and the cursor of the next page (None after the last page).

        Raises:
            InvalidRequest: `after` is not a cursor of a listing.
        """
        return list_jobs(self.redis, selected, limit=limit, after=after)

    @reaching_redis()
    def count(self, selected: JobFilter = ALL_JOBS) -> int:
        """Returns the number of jobs that a list of all pages has."""
        return count_jobs(self.redis, selected)

    @reaching_redis()
    def statistics(self) -> Statistics:
        """Returns the present numbers of jobs, and the counters of ended ones."""
        return read_statistics(self.redis)

    @reaching_redis()
    def cancel(self, job_id: str) -> Job:
        """Ends a waiting job at once; a running one stops at its next step.

        Raises:
            JobNotFound: the job does not exist.
            JobAlreadyEnded: the job has ended.
        """
        waiting = end_waiting(self.redis, job_id, JobCanceled("The job was canceled before it ran."))
        job = read_job(self.redis, job_id)
        if waiting:
            return job
        if job.status in ENDED:
            raise JobAlreadyEnded(f"Job {job_id} has ended as {job.status}.")
        self.redis.hset(record_key(job_id), "cancel", "1")
        # Between the two steps a worker's death may have put it back in the queue.
        end_waiting(self.redis, job_id, JobCanceled("The job was canceled."))
        return read_job(self.redis, job_id)

    @reaching_redis()
    def retry(
        self,
        job_id: str,
        *,
        need: DiskNeed | None = None,
        memory_bytes: int = 0,
        origin: Origin = UNKNOWN_ORIGIN,
    ) -> Job:
        """Submits the request of an ended job as a new job.

        Raises:
            JobNotFound: the job does not exist.
            JobNotEnded: the job has not ended.
            GraftwerkError: the submission is refused, see `submit`.
        """
        job = self._ended(job_id, "be run again")
        known = zip(job.after, read_records(self.redis, job.after), strict=True)
        after = [id for id, record in known if record is not None]
        request = parse_request({**job.request.model_dump(mode="json"), "after": after})
        return self.submit(request, need=need, memory_bytes=memory_bytes, origin=origin)[0]

    @reaching_redis()
    def delete(self, job_id: str) -> None:
        """Deletes the record of an ended job.

        Raises:
            JobNotFound: the job does not exist.
            JobNotEnded: the job has not ended.
        """
        self._ended(job_id, "be deleted")
        for rq in fetch(self.redis, [job_id]):
            if rq is not None:
                rq.delete()
        forget(self.redis, [job_id])

    @reaching_redis()
    def log(self, job_id: str) -> str:
        """Returns the lines that the executions of a job wrote.

        Raises:
            JobNotFound: the job does not exist.
        """
        read_record(self.redis, job_id)
        return "".join(f"{as_text(line)}\n" for line in self.redis.lrange(log_key(job_id), 0, -1))

    @reaching_redis()
    def deliveries(self, job_id: str) -> Sequence[Delivery]:
        """Returns the deliveries of a job's webhook, oldest first.

        Raises:
            JobNotFound: the job does not exist.
        """
        read_record(self.redis, job_id)
        return read_deliveries(self.redis, job_id)

    @reaching_redis()
    def redeliver(self, job_id: str, delivery_id: str) -> Delivery:
        """Makes a delivery that has ended due again.

        Raises:
            JobNotFound: the job does not exist.
            DeliveryNotFound: the job has no such delivery.
            DeliveryPending: the delivery has not ended.
        """
        read_record(self.redis, job_id)
        return redeliver(self.redis, job_id, delivery_id)

    @reaching_redis()
    def promised(self, after: Sequence[str]) -> dict[str, JobRequest]:
        """Returns, by name, the requests of unfinished jobs in `after` and upstream of them that make a model."""
        promises: dict[str, JobRequest] = {}
        pending, seen = [str(id) for id in after], set[str]()
        while pending:
            seen.update(pending)
            jobs = [job for job in read_jobs(self.redis, pending) if job and job.status not in ENDED]
            promises |= {job.request.makes: job.request for job in jobs if job.request.makes is not None}
            pending = [id for id in {id for job in jobs for id in job.after} if id not in seen]
        return promises

    @reaching_redis()
    def reserved_bytes(self, taken: Callable[[str], int]) -> int:
        """Returns the bytes of the volume that unfinished jobs have reserved; `taken` returns the bytes that a job has written."""
        return reserved_bytes(self.redis, taken)

    @reaching_redis()
    def using(self, model_name: str) -> Sequence[str]:
        """Returns the ids of the unfinished jobs that read or make this model."""
        users = []
        for job in read_jobs(self.redis, active_ids(self.redis)):
            if job is None or job.status in ENDED:
                continue
            names = [*job.request.reads, job.request.makes or ""]
            if model_name.lower() in {name.lower() for name in names}:
                users.append(job.id)
        return sorted(users)

    @reaching_redis()
    def unfinished(self, model_name: str) -> Sequence[OpenJob]:
        """Returns the unfinished jobs that read or make this model, the oldest first."""
        found = (job for job in read_open(self.redis) if job.reads_or_makes(model_name))
        return sorted((job for job in found if job.status not in ENDED), key=lambda job: job.created_us)

    @reaching_redis()
    def using_upload(self, upload_id: str) -> Sequence[str]:
        """Returns the ids of the unfinished jobs that need this upload."""
        jobs = read_jobs(self.redis, active_ids(self.redis))
        return sorted(
            job.id for job in jobs if job and job.status not in ENDED and upload_id in job.request.uploads
        )

    @reaching_redis()
    def ping(self) -> None:
        """Raises NotReady if Redis does not answer."""
        self.redis.ping()

    @reaching_redis()
    def identity(self) -> str:
        """Returns the id of this service, see `service_identity`."""
        return service_identity(self.redis)

    @reaching_redis()
    def workers(self) -> Sequence[WorkerState]:
        """Returns the workers that are alive, by name: the janitor removes the entries of lost ones."""
        return read_workers(self.redis)

    def _ended(self, job_id: str, action: str) -> Job:
        job = read_job(self.redis, job_id)
        if job.status not in ENDED:
            raise JobNotEnded(f"Job {job_id} is {job.status} and cannot {action}.", "Cancel it first.")
        return job
