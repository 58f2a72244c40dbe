"""Thousands of short requests: growth of memory, keys that remain in Redis."""

import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from bench.job_requests import Json, ask
from bench.memory import memory
from bench.service import Service, until

CONCURRENCY = 16
RETENTION_SECONDS = 60
"""Smallest retention that the service accepts; with the janitor's interval, jobs expire within twice that."""

FORGOTTEN_SECONDS = 120.0
LARGEST_GROWTH = 0.10
"""Growth of anonymous memory between a tenth of the requests and all of them."""

IDENTITY = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}")


def soak(service: Service, requests: int) -> tuple[Json, list[str]]:
    """Submits jobs, measures memory, deletes the jobs and looks for remaining keys."""
    keys_before = kinds_of_keys(service)
    done = Counter[str]()
    guard = threading.Lock()

    def one(number: int) -> str:
        job_id = service.submit(ask(f"short {number}", 4, seed=number))
        status = service.wait(job_id)["status"]
        with guard:
            done[status] += 1
            if done.total() == max(1, requests // 10):
                samples.append(sample(service))
        return job_id

    samples: list[dict[str, int]] = []
    started = time.monotonic()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        ids = list(pool.map(one, range(requests)))
    seconds = time.monotonic() - started
    samples.append(sample(service))
    keys_full = kinds_of_keys(service)
    ids = all_jobs(service)  # those of other measurements too
    delete_all(service, ids)
    left, expiring = remains(service, set(ids))
    growth = {name: samples[1][name] / samples[0][name] - 1 for name in samples[0]}
    report: Json = {
        "requests": requests, "concurrency": CONCURRENCY, "seconds": round(seconds, 1), "ended": dict(done),
        "mb_after_a_tenth": {name: round(size / 2**20, 1) for name, size in samples[0].items()},
        "mb_at_the_end": {name: round(size / 2**20, 1) for name, size in samples[1].items()},
        "growth_percent": {name: round(share * 100, 1) for name, share in growth.items()},
        "keys_before": keys_before, "keys_with_all_jobs": keys_full, "keys_after_deleting": kinds_of_keys(service),
        "deleted": len(ids), "left_of_deleted_jobs": left[:20], "expiring_by_themselves": expiring[:20],
    }  # fmt: skip
    wrong = [f"{len(left)} keys or members are left of deleted jobs: {left[:3]}"] if left else []
    wrong += [
        f"{name} grew by {share:.0%} during the soak"
        for name, share in growth.items()
        if "anonymous" in name and share > LARGEST_GROWTH
    ]
    if done["succeeded"] != requests:
        wrong.append(f"of {requests} requests {dict(done)}")
    return report, wrong


def expire(service: Service) -> tuple[Json, list[str]]:
    """Submits jobs, waits for their expiry and looks for remaining keys."""
    ids = [service.submit(ask(f"forget {number}", 4, seed=number)) for number in range(CONCURRENCY)]
    for job_id in ids:
        service.wait(job_id)
    started = time.monotonic()
    until(lambda: not remains(service, set(ids))[0], FORGOTTEN_SECONDS)
    left, expiring = remains(service, set(ids))
    seconds = round(time.monotonic() - started, 1)
    report: Json = {
        "jobs": len(ids),
        "seconds_until_forgotten": seconds,
        "left": left,
        "expiring_by_themselves": expiring,
    }
    return report, [f"{len(left)} keys or members are left of expired jobs: {left[:3]}"] if left else []


def sample(service: Service) -> dict[str, int]:
    """Returns bytes of the generation worker and of all API processes."""
    worker, api = memory([service.generate_worker()]), memory(service.api())
    return {
        "worker_anonymous": worker[0],
        "worker_resident": worker[1],
        "api_anonymous": api[0],
        "api_resident": api[1],
    }


def all_jobs(service: Service) -> list[str]:
    """Returns the ids of all jobs of the service."""
    ids: list[str] = []
    after = None
    while True:
        params = {"limit": "100"} | ({"after": after} if after else {})
        page = service.http.get("/api/jobs", params=params).raise_for_status().json()
        ids += [job["id"] for job in page["jobs"]]
        after = page.get("next") or page.get("after")
        if not after:
            return ids


def delete_all(service: Service, ids: list[str]) -> None:
    """Deletes every job."""
    for job_id in ids:
        answer = service.http.delete(f"/api/jobs/{job_id}")
        assert answer.is_success, answer.text


def kinds_of_keys(service: Service) -> dict[str, int]:
    """Returns the number of keys by pattern, with a star for an id."""
    names = (name.decode() for name in service.redis.scan_iter(count=1000))
    return dict(sorted(Counter(IDENTITY.sub("*", name) for name in names).items()))


def remains(service: Service, ids: set[str]) -> tuple[list[str], list[str]]:
    """Keys named by one of these jobs and shared keys that hold one: those that stay, and those that expire.

    The events of all jobs are a log of the last 4,000 and stay.
    """
    left, expiring = [], []
    for raw in service.redis.scan_iter(count=1000):
        name = raw.decode()
        if ids & set(IDENTITY.findall(name)):
            (left if service.redis.ttl(name) < 0 else expiring).append(name)
        elif name != "graftwerk:events" and any(
            ids & set(IDENTITY.findall(member)) for member in members(service, name)
        ):
            left.append(f"a member of {name}")
    return sorted(left), sorted(expiring)


def members(service: Service, name: str) -> list[str]:
    """Returns the content of a key as text."""
    redis, kind = service.redis, service.redis.type(name).decode()
    reading = {
        "zset": lambda: redis.zrange(name, 0, -1),
        "set": lambda: redis.smembers(name),
        "list": lambda: redis.lrange(name, 0, -1),
        "hash": lambda: [part for pair in redis.hgetall(name).items() for part in pair],
        "string": lambda: [redis.get(name) or b""],
        "stream": lambda: [str(entry).encode() for entry in redis.xrange(name)],
    }
    return [member.decode(errors="replace") for member in reading[kind]()] if kind in reading else []
