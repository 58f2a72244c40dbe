"""Jobs over HTTP: idempotent submission, lists, progress, events, cancellation, retry."""

import time
from itertools import pairwise
from uuid import uuid4

import httpx

from tests.e2e.conftest import GREEDY, Line
from tests.e2e.product import Json, Product, problem


def quick(model: str = "merged", **more: object) -> Json:
    return {"kind": "generate", "model": model, "prompt": "hello", "sampling": GREEDY, **more}


def put(product: Product, job_id: str, request: Json) -> httpx.Response:
    return product.http.put(f"/api/jobs/{job_id}", json=request)


def test_the_same_put_twice_is_one_job(product: Product, line: Line) -> None:
    job_id = str(uuid4())
    first = put(product, job_id, quick())
    again = put(product, job_id, quick())
    assert first.status_code == 202
    assert again.is_success
    assert first.json()["id"] == again.json()["id"] == job_id
    product.succeeded(job_id)
    assert [job["id"] for job in product.get("/api/jobs", limit=5)["jobs"]].count(job_id) == 1


def test_a_put_of_another_body_under_a_known_id_is_refused(product: Product, line: Line) -> None:
    job_id = str(uuid4())
    put(product, job_id, quick())
    problem(put(product, job_id, quick(metadata={"other": "body"})), 422, "idempotency_conflict")


def test_an_idempotency_key_gives_the_same_job_again(product: Product, line: Line) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    first, again = (product.http.post("/api/jobs", json=quick(), headers=headers) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    other = product.http.post("/api/jobs", json=quick(metadata={"other": "body"}), headers=headers)
    problem(other, 422, "idempotency_conflict")


def test_a_list_is_read_page_by_page_newest_first(product: Product, line: Line) -> None:
    made = [product.run(**quick(metadata={"number": str(number)}))["id"] for number in range(5)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while len(seen) < 5:
        page = product.get("/api/jobs", kind="generate", limit=2, **cursor)
        assert len(page["jobs"]) == 2
        seen += [job["id"] for job in page["jobs"]]
        cursor = {"after": page["next"]}
    assert seen[:5] == made[::-1]


def test_a_list_is_filtered_by_kind_and_status(product: Product, line: Line) -> None:
    jobs = product.get("/api/jobs", kind="convert", status="succeeded")["jobs"]
    assert line.convert["id"] in {job["id"] for job in jobs}
    assert {(job["kind"], job["status"]) for job in jobs} == {("convert", "succeeded")}


def test_a_job_keeps_its_metadata_and_links_to_its_pages(product: Product, line: Line) -> None:
    job = product.run(**quick(metadata={"ticket": "42"}))
    assert job["metadata"] == {"ticket": "42"}
    assert product.get(job["links"]["self"])["id"] == job["id"]


def test_a_job_that_has_not_ended_says_when_to_ask_again(product: Product, slow: Json) -> None:
    job = product.submit(**slow, target="asked-again")
    assert int(product.http.get(f"/api/jobs/{job['id']}").headers["Retry-After"]) >= 1
    product.cancel(job["id"])
    product.wait(job["id"])
    assert "Retry-After" not in product.http.get(f"/api/jobs/{job['id']}").headers


def test_progress_grows_to_the_whole_and_names_its_stage(product: Product, slow: Json) -> None:
    job = product.submit(**slow, target="watched")
    events = list(product.events(job["id"]))
    progress = [event.data["progress"] for event in events if event.name == "progress"]
    assert len(progress) >= 3
    assert all(step["stage"] and step["unit"] for step in progress)
    assert all(0 <= step["done"] <= step["total"] for step in progress if step["total"])
    for before, after in pairwise(progress):
        assert after["stage"] != before["stage"] or after["done"] >= before["done"]
    statuses = [event.data["status"] for event in events if event.name == "status"]
    assert statuses[-1] == "succeeded"
    assert "running" in statuses
    product.http.delete("/api/models/watched")


def test_events_are_resumed_after_the_last_one_seen(product: Product, slow: Json) -> None:
    job = product.submit(**slow, target="resumed")
    seen = []
    for event in product.events(job["id"]):
        seen.append(event)
        if event.name == "progress":
            break
    rest = list(product.events(job["id"], last_id=seen[-1].id))
    ids = [event.id for event in product.events(job["id"], last_id="0-0")]
    assert len(set(ids)) == len(ids)
    assert [event.id for event in rest] == ids[ids.index(seen[-1].id) + 1 :]
    assert rest[-1].data["status"] == "succeeded"
    assert len(rest) >= 2
    product.http.delete("/api/models/resumed")


def test_one_stream_has_the_events_of_all_jobs(product: Product, line: Line) -> None:
    with product.http.stream("GET", "/api/events") as answer:
        job = product.submit(**quick())
        assert any(job["id"] in text for text in answer.iter_lines())


def test_a_waiting_job_is_canceled_at_once_and_leaves_nothing(product: Product, slow: Json) -> None:
    running = product.submit(**slow, target="before-it")
    product.wait_until_running(running["id"])
    waiting = product.submit(**slow, target="still-waiting")
    assert product.job(waiting["id"])["queue_position"] == 1
    assert product.cancel(waiting["id"])["status"] == "canceled"
    product.cancel(running["id"])
    product.wait(running["id"])
    assert product.job(waiting["id"])["error"]["code"] == "canceled"
    assert "still-waiting" not in product.model_names()


def test_a_running_job_ends_within_two_seconds_of_its_cancel(product: Product, slow: Json) -> None:
    before = product.volume.files()
    job = product.submit(**slow, target="half-done")
    product.wait_until_running(job["id"])
    asked = time.monotonic()
    product.cancel(job["id"])
    ended = product.wait(job["id"])
    assert time.monotonic() - asked <= 2
    assert (ended["status"], ended["error"]["code"]) == ("canceled", "canceled")
    assert product.volume.files() == before


def test_an_ended_job_is_not_canceled(product: Product, line: Line) -> None:
    problem(product.http.post(f"/api/jobs/{line.merge['id']}/cancel"), 409, "job_already_ended")


def test_an_ended_job_is_run_again_as_a_new_one(product: Product, line: Line) -> None:
    first = product.run(**quick())
    again = product.http.post(f"/api/jobs/{first['id']}/retry")
    assert again.is_success
    assert again.json()["id"] != first["id"]
    texts = [
        [output["text"] for output in job["result"]["outputs"]]
        for job in (first, product.succeeded(again.json()["id"]))
    ]
    assert texts[0] == texts[1]


def test_an_ended_job_can_be_deleted(product: Product, line: Line) -> None:
    job = product.run(**quick())
    assert product.http.delete(f"/api/jobs/{job['id']}").is_success
    problem(product.http.get(f"/api/jobs/{job['id']}"), 404, "job_not_found")


def test_the_log_of_a_job_is_text(product: Product, line: Line) -> None:
    answer = product.http.get(f"/api/jobs/{line.merge['id']}/log")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
