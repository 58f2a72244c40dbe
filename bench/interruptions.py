"""A canceled job among running ones, and a worker that is killed with seven jobs on it."""

import json
import threading
import time
from dataclasses import dataclass, field

import httpx

from bench.job_requests import Json, alike
from bench.service import Service, seconds_since, token_ids, until

FOLLOWED = 0
"""Index of the job whose stream is followed when its worker is killed."""


def cancel_one(service: Service, new_tokens: int) -> tuple[Json, list[str]]:
    """Cancels one of eight jobs; the other seven must generate the same tokens as undisturbed."""
    asks = alike(8, new_tokens)
    undisturbed = [token_ids(service.wait(job)) for job in [service.submit(ask) for ask in asks]]
    ids = [service.submit(ask) for ask in asks]
    service.wait_for_text(ids[-1])  # they begin in their order: now all eight run
    active = len(service.http.get("/api/jobs", params={"status": "running"}).json()["jobs"])
    start = time.monotonic()
    service.http.post(f"/api/jobs/{ids[3]}/cancel").raise_for_status()
    canceled = service.wait(ids[3])
    seconds = time.monotonic() - start
    others = [number for number in range(8) if number != 3]
    same = sum(token_ids(service.wait(ids[number])) == undisturbed[number] for number in others)
    report: Json = {
        "running": active,
        "seconds_to_canceled": round(seconds, 3),
        "others_equal": f"{same}/7",
        "status": canceled["status"],
    }
    wrong = []
    if active != 8 or canceled["status"] != "canceled":
        wrong.append(f"of {active} running jobs one was to be canceled and is {canceled['status']}")
    if same != 7:
        wrong.append(f"a cancel changed what {7 - same} other jobs wrote")
    return report, wrong


@dataclass
class Follower:
    """Reads a job's text, drops the connection on request and resumes after the last event."""

    service: Service
    job_id: str
    text: str = ""
    last_id: str = ""
    before: int = 0
    drop: threading.Event = field(default_factory=threading.Event)

    def follow(self) -> None:
        self._read()
        self.before = len(self.text)
        while not self._read():
            time.sleep(0.1)

    def _read(self) -> bool:
        """True once the job has ended."""
        dropped = self.drop.is_set()
        try:
            for event in self.service.events(self.job_id, self.last_id):
                self.last_id = event.id or self.last_id
                data = json.loads(event.data)
                if event.event == "token":  # a job that runs again begins at offset 0 again
                    self.text = self.text[: data["offset"]] + data["text"]
                elif event.event == "status" and data["status"] in ("succeeded", "failed", "canceled"):
                    return True
                if self.drop.is_set() and not dropped:
                    return False
        except httpx.TransportError:
            return False
        return False


def kill_worker(service: Service, new_tokens: int) -> tuple[Json, list[str]]:
    """Kills the worker with seven active jobs: all must end on its replacement with the same tokens."""
    asks = alike(7, new_tokens, seed=3)
    undisturbed = [token_ids(service.wait(job)) for job in [service.submit(ask) for ask in asks]]
    ids = [service.submit(ask) for ask in asks]
    follower = Follower(service, ids[FOLLOWED])
    thread = threading.Thread(target=follower.follow)
    thread.start()
    service.wait_for_text(ids[-1])
    until(lambda: len(follower.text) > 0)
    worker = service.generate_worker()
    killed = time.time()
    worker.kill()
    follower.drop.set()
    jobs = [service.wait(job_id) for job_id in ids]
    thread.join()
    ended = [seconds_since(killed, job["finished_at"]) for job in jobs]
    finished = sum(job["status"] == "succeeded" for job in jobs)
    pairs = zip(jobs, undisturbed, strict=True)
    same = sum(job["status"] == "succeeded" and token_ids(job) == expected for job, expected in pairs)
    whole = jobs[FOLLOWED]["result"] and follower.text == jobs[FOLLOWED]["result"]["outputs"][0]["text"]
    report: Json = {
        "finished": f"{finished}/7", "equal": f"{same}/7", "seconds_to_last_end": round(max(ended), 2),
        "same_worker": service.generate_worker().pid == worker.pid,
        "characters_read_before": follower.before, "stream_is_whole": bool(whole),
    }  # fmt: skip
    wrong = [f"after kill -9 only {same} of 7 jobs wrote what they should"] if same != 7 else []
    if not whole or not follower.before or min(ended) <= 0:
        wrong.append("the followed stream did not resume with the whole text")
    return report, wrong
