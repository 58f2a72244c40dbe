"""The pages of jobs in a browser: live rows, filters with back and forward, actions, the page of a job."""

import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Page, expect
from pydantic import SecretStr
from redis import Redis
from werkzeug.serving import make_server

from api import create_app
from bench.record_copies import copy, finalized, recorded_bytes
from services.jobs.events import publish_progress, publish_status, publish_tokens
from services.jobs.queue import JobQueue, connect
from services.jobs.status import JobProgress
from services.kinds import QUEUES, parse_request
from services.kinds.generate import TokenPiece
from services.settings import Settings
from tests.browser.conftest import OpenPage
from tests.browser.looks import LOOKS, fits
from tests.e2e.conftest import Line
from tests.e2e.product import Json, Product
from tests.redis_server import Server

RECORDS = 10_000
LARGEST_DOM = 3000
"""Elements of a board of 50 rows, with the rest of the page."""


RENDER_ROWS = """() => {
  const rows = document.getElementById("rows").cloneNode(true);
  const began = performance.now();
  document.body.append(rows);
  const height = rows.offsetHeight;
  rows.remove();
  return height && performance.now() - began;
}"""
"""Milliseconds in which this machine draws the 50 rows of a board; 10,000 rows would take 200 times as long."""


class Board(NamedTuple):
    """A service with many ended jobs, and its Redis; no worker runs."""

    url: str
    redis: Redis
    queue: JobQueue


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A service with 10,000 ended jobs."""
    folder = tmp_path_factory.mktemp("board")
    server = Server(folder)
    server.start()
    (folder / "models").mkdir()
    settings = Settings(redis_url=SecretStr(server.url), models_dir=folder / "models")
    redis = connect(settings)
    recorded_bytes(redis)
    copy(redis, finalized(redis, settings)[0], RECORDS)
    put_workers(redis)
    queue = JobQueue(redis, settings)
    http = make_server("127.0.0.1", 0, create_app(settings, queue=queue), threaded=True)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield Board(f"http://127.0.0.1:{http.server_port}", redis, queue)
    http.shutdown()
    server.stop()


def put_workers(redis: Redis) -> None:
    """Writes the entries of idle workers, so that the service is ready."""
    heartbeat = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    for queue in QUEUES:
        redis.sadd("rq:workers", f"rq:worker:{queue}-host-1-abcdef")
        fields = {"queues": queue, "state": "idle", "last_heartbeat": heartbeat}
        redis.hset(f"rq:worker:{queue}-host-1-abcdef", mapping=fields)


def row(page: Page, job_id: str) -> Any:
    return page.locator(f"#job-{job_id}")


def submit(board: Board, target: str) -> str:
    request = {"kind": "convert", "source": "llama", "target": target}
    return str(board.queue.submit(parse_request(request))[0].id)


# ---- board --------------------------------------------------------------------------------------------


def test_ten_thousand_jobs_stay_smooth(open_page: OpenPage, board: Board) -> None:
    page = open_page("/jobs", base_url=board.url)
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#total")).to_have_text("10,000 jobs")
    assert page.locator("#rows > .job").count() == 50
    assert page.evaluate("document.querySelectorAll('*').length") < LARGEST_DOM
    render_ms = page.evaluate(RENDER_ROWS)
    page.evaluate(
        "window.longest = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries())"
        " longest = Math.max(longest, entry.duration); }).observe({entryTypes: ['longtask']})"
    )
    job_ids = [submit(board, f"burst-{number}") for number in range(200)]
    for done in range(1000):
        progress = JobProgress(
            stage="writing tensors", done=done, total=1000, unit="bytes", fraction=done / 1000, eta_seconds=1
        )
        publish_progress(board.redis, job_ids[-1 - done % 50], progress)
    expect(row(page, job_ids[-1])).to_be_visible()
    expect(page.locator("#rows > .job")).to_have_count(50)
    assert page.evaluate("document.querySelectorAll('*').length") < LARGEST_DOM
    assert page.evaluate("window.longest") < max(500, 30 * render_ms)
    for job_id in job_ids:
        board.queue.cancel(job_id)


def test_pages_of_many_jobs_go_back_and_forth(open_page: OpenPage, board: Board) -> None:
    page = open_page("/jobs?kind=merge", base_url=board.url)
    shown = list[str]()
    for name in ("", "Older", "Older", "Newer", "Newer"):
        if name:
            page.get_by_role("link", name=name).click()
            expect(page.locator(f"#{shown[-1]}")).to_have_count(0)
            expect(page.locator("#rows > .job").first.locator(".job-title")).to_be_focused()
        shown.append(str(page.locator("#rows > .job").first.get_attribute("id")))
    assert shown[3:] == [shown[1], shown[0]]
    assert len(set(shown)) == 3
    expect(page).to_have_url(re.compile(r"/jobs\?kind=merge$"))


def test_filters_are_in_the_address_and_follow_back_and_forward(open_page: OpenPage, board: Board) -> None:
    page = open_page("/jobs", base_url=board.url)
    page.get_by_label("Status").select_option("failed")
    expect(page).to_have_url(re.compile(r"/jobs\?status=failed$"))
    expect(page.locator("#rows > .job:not([data-status=failed])")).to_have_count(0)
    page.get_by_label("Kind", exact=True).select_option("merge")
    expect(page).to_have_url(re.compile(r"/jobs\?kind=merge&status=failed$"))
    page.go_back()
    expect(page.get_by_label("Kind", exact=True)).to_have_value("")
    expect(page.get_by_label("Status")).to_have_value("failed")
    page.go_back()
    expect(page.get_by_label("Status")).to_have_value("")
    page.go_forward()
    expect(page.get_by_label("Status")).to_have_value("failed")
    page.get_by_label("Model", exact=True).fill("no-such-model")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No job matches the filter.")).to_be_visible()


def test_a_new_job_appears_and_its_changes_stay_in_its_row(open_page: OpenPage, board: Board) -> None:
    page = open_page("/jobs", base_url=board.url)
    expect(page.locator("#connection")).to_have_text("Live")
    job_id = submit(board, "appears")
    expect(row(page, job_id)).to_contain_text("appears")
    expect(page.locator("#rows > .job").first).to_have_id(f"job-{job_id}")
    row(page, job_id).get_by_role("button", name="Cancel").focus()
    board.queue.cancel(job_id)
    publish_status(board.redis, board.queue.get(job_id))
    expect(row(page, job_id)).to_have_attribute("data-status", "canceled")
    expect(page.locator(":focus")).to_have_count(1)
    assert page.evaluate("document.activeElement.closest('.job')?.id") == f"job-{job_id}"


def test_a_job_that_the_filter_does_not_select_does_not_appear(open_page: OpenPage, board: Board) -> None:
    page = open_page("/jobs?kind=convert&model=wanted", base_url=board.url)
    expect(page.locator("#connection")).to_have_text("Live")
    other, wanted = submit(board, "other"), submit(board, "wanted")
    expect(row(page, wanted)).to_be_visible()
    expect(row(page, other)).to_have_count(0)
    for job_id in (other, wanted):
        board.queue.cancel(job_id)


def test_a_record_is_deleted_after_a_question(open_page: OpenPage, board: Board) -> None:
    page = open_page("/jobs", base_url=board.url)
    job_id = submit(board, "deleted")
    board.queue.cancel(job_id)
    page.reload()
    button = row(page, job_id).get_by_role("button", name="Delete the record")
    button.click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(row(page, job_id)).to_be_visible()
    button.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(row(page, job_id)).to_have_count(0)
    assert page.evaluate("document.activeElement.className") == "job-title"


# ---- with workers -------------------------------------------------------------------------------------


def test_a_running_job_moves_its_bar_and_can_be_canceled_and_run_again(
    open_page: OpenPage, product: Product, slow: Json
) -> None:
    page = open_page("/jobs")
    expect(page.locator("#connection")).to_have_text("Live")
    job = product.submit(**slow, target="moved")
    bar = row(page, job["id"]).get_by_role("progressbar")
    expect(bar).to_be_visible()
    expect(row(page, job["id"])).to_contain_text(re.compile(r"\d+ % · .+ of .+"))
    row(page, job["id"]).get_by_role("button", name="Cancel").click()
    expect(row(page, job["id"])).to_have_attribute("data-status", "canceled")
    row(page, job["id"]).get_by_role("button", name="Run again").click()
    page.get_by_role("link", name="Show the new job").click()
    expect(page).to_have_url(re.compile(r"/jobs/[0-9a-f-]{36}$"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#job-head")).to_have_attribute("data-status", "canceled")
    expect(page.get_by_role("button", name="Run again")).to_be_visible()


def test_the_page_of_a_running_job_follows_it_to_its_drawn_result(
    open_page: OpenPage, product: Product, slow: Json, screenshot: Callable[..., None]
) -> None:
    job = product.submit(**slow, target="followed")
    page = open_page(f"/jobs/{job['id']}")
    expect(page.locator("#job-state [data-progress-text]")).to_contain_text("%")
    screenshot(page, "job-running", full_page=True)
    expect(page.locator("#job-head")).to_have_attribute("data-status", "succeeded")
    expect(page.get_by_role("heading", name="Verification")).to_be_visible()
    expect(page.locator(".verdict")).to_have_text(re.compile("Passed"))
    expect(page.locator("#log")).to_contain_text("followed is published")


def test_the_page_of_a_generate_job_shows_its_text_as_it_is_written(
    open_page: OpenPage, board: Board
) -> None:
    request = {"kind": "generate", "model": "llama", "prompt": "Hello"}
    job_id = board.queue.submit(parse_request(request))[0].id
    page = open_page(f"/jobs/{job_id}", base_url=board.url)
    for offset, text in ((0, "The <b>capital"), (14, "</b> is Paris.")):
        publish_tokens(board.redis, job_id, [TokenPiece(index=0, offset=offset, text=text)])
    expect(page.locator("#so-far p")).to_have_text("The <b>capital</b> is Paris.")
    board.queue.cancel(job_id)
    expect(page.locator("#job-head")).to_have_attribute("data-status", "canceled")
    expect(page.locator("#so-far")).to_have_count(0)


@pytest.mark.parametrize("look", LOOKS)
def test_results_have_no_serious_finding_and_fit(
    open_page: OpenPage,
    line: Line,
    axe: Callable[[Page], list[str]],
    screenshot: Callable[..., None],
    look: str,
) -> None:
    page = open_page("/jobs", **LOOKS[look])
    expect(page.locator("#rows > .job").first).to_be_visible()
    screenshot(page, f"jobs-{look}")
    assert axe(page) == []
    for name, job in line._asdict().items():
        page.goto(f"/jobs/{job['id']}")
        expect(page.locator("#job-head")).to_be_visible()
        screenshot(page, f"job-{name}-{look}", full_page=True)
        assert axe(page) == [], name
        assert fits(page), name


def test_a_request_is_copied_as_command_and_program(open_page: OpenPage, line: Line) -> None:
    page = open_page(f"/jobs/{line.merge['id']}", permissions=["clipboard-read", "clipboard-write"])
    for name, text in (
        ("curl", "curl -X POST"),
        ("Python", "client.merge("),
        ("graftwerk", "graftwerk merge"),
    ):
        page.get_by_role("button", name=f"Copy as {name}", exact=True).click()
        expect(page.get_by_text("Copied.").last).to_be_visible()
        assert text in page.evaluate("navigator.clipboard.readText()")


def test_the_board_is_used_by_keyboard(open_page: OpenPage, line: Line) -> None:
    page = open_page("/jobs?kind=merge&model=merged")
    page.locator(f"#job-{line.merge['id']} .job-title").focus()
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_attribute("data-action", "retry")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("merged")


def test_the_system_page_refreshes_and_says_which_worker_serves(
    open_page: OpenPage, line: Line, screenshot: Callable[..., None]
) -> None:
    page = open_page("/system")
    expect(page.locator("#freshness")).to_have_text("Live")
    expect(page.locator("#workers li")).to_have_count(3)
    screenshot(page, "system", full_page=True)
    page.route("**/system", lambda route: route.fulfill(status=429, body="busy"))
    expect(page.locator("#freshness")).to_have_text(re.compile("Not refreshed"))
    expect(page.locator("#workers li")).to_have_count(3)


def test_the_reference_is_searched_and_its_commands_are_copied(
    open_page: OpenPage, screenshot: Callable[..., None]
) -> None:
    page = open_page("/docs", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Find").fill("redeliver")
    expect(page.locator(".operation:visible")).to_have_count(1)
    page.locator(".operation:visible [data-copy]").click()
    assert "/redeliver" in page.evaluate("navigator.clipboard.readText()")
    page.get_by_label("Find").fill("zzz")
    expect(page.locator("#found")).to_have_text("Nothing is found.")
    page.get_by_label("Find").fill("")
    page.locator("#post-api-jobs summary").nth(2).click()
    screenshot(page, "docs")
