"""Jobs that wait for others, by `after`."""

from redis import Redis
from rq.job import Job as RQJob
from rq.utils import as_text

from services.jobs.records import reaching_redis


@reaching_redis()
def waiting_dependents(redis: Redis, job_id: str) -> list[str]:
    """Returns the ids of the jobs that wait until this job has succeeded."""
    return sorted(as_text(id) for id in redis.smembers(RQJob.dependents_key_for(job_id)))
