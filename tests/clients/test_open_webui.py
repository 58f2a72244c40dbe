"""Open WebUI, untouched, in a browser: an account, two turns in Chinese, and its own requests next to them.

The last picture of the page is `open-webui.png` in the folder of the environments.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import DESKTOP, browser
from tests.clients.environments import FOLDER
from tests.clients.open_webui import TEMPERATURE, open_webui
from tests.e2e.conftest import Line, hub, incoming, line, product, questions, stack
from tests.e2e.product import ENDED, Json, Product

__all__ = ["browser", "hub", "incoming", "line", "product", "questions", "stack"]

MODEL = "merged"
TURNS = ("中国的首都是哪里？", "法国的首都是哪里？")
OWN_REQUESTS = ("Generate a concise title", "broad tags", "useful messages")
"""Words of the requests that it makes by itself: title, tags, follow-ups."""
EMAIL, PASSWORD = "walker@example.org", "of this test alone"
TIMEOUT_MS = 300_000


@pytest.fixture(scope="module")
def address(product: Product, line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of Open WebUI."""
    with open_webui(tmp_path_factory.mktemp("open-webui"), product.url) as found:
        yield found


def test_two_turns_in_chinese_are_answered(
    browser: Browser, address: str, product: Product, questions: list[dict[str, str]]
) -> None:
    answers = {entry["question"]: entry["answer"] for entry in questions}
    sign_up(opened(browser, address))
    page = opened(browser, address)
    sign_in(page)
    choose_model(page)
    for number, question in enumerate(TURNS):
        page.locator("#chat-input").press_sequentially(question)
        page.keyboard.press("Enter")
        expect(page.locator(".chat-assistant").nth(number)).to_have_text(answers[question])
        expect(page.locator(".chat-assistant")).to_have_count(number + 1)
    jobs = asked_jobs(product, count=len(TURNS) + len(OWN_REQUESTS))
    page.screenshot(path=FOLDER / "open-webui.png", animations="disabled")
    page.context.close()
    assert {job["status"] for job in jobs} == {"succeeded"}
    chats = [job for job in jobs if job["request"].get("tools")]
    assert [texts_of(job) for job in chats] == [[*TURNS[:1]], [TURNS[0], answers[TURNS[0]], TURNS[1]]]
    assert [job["result"]["outputs"][0]["text"] for job in chats] == [answers[turn] for turn in TURNS]
    assert [job["request"]["sampling"]["temperature"] for job in chats] == [TEMPERATURE] * 2
    assert [job["result"]["ignored"] for job in chats] == [["tools"]] * 2
    own = [job for job in jobs if not job["request"].get("tools")]
    for words in OWN_REQUESTS:
        (job, *_) = [job for job in own if words in texts_of(job)[-1]]
        assert job["result"]["outputs"][0]["usage"]["completion_tokens"] > 0


def opened(browser: Browser, address: str) -> Page:
    """Returns the first page in a fresh profile."""
    context = browser.new_context(viewport=DESKTOP, locale="en-GB")
    context.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    page = context.new_page()
    page.goto(address, wait_until="domcontentloaded")
    return page


def sign_up(page: Page) -> None:
    """Makes the first account, which is the administrator's."""
    page.get_by_role("button", name="Get started").click()
    page.locator("input[autocomplete='name']").fill("Walker")
    page.locator("input[autocomplete='email']").fill(EMAIL)
    page.locator("input[type='password']").fill(PASSWORD)
    page.get_by_role("button", name="Create Admin Account").click()
    page.locator("#chat-input").wait_for()
    page.context.close()


def sign_in(page: Page) -> None:
    """Signs in with the account, and closes the list of changes."""
    page.locator("input[autocomplete='email']").fill(EMAIL)
    page.locator("input[type='password']").fill(PASSWORD)
    page.locator("button[type='submit']").click()
    page.get_by_role("button", name="Okay, Let's Go!").click()


def choose_model(page: Page) -> None:
    """Chooses the merged model from the list of those that the service names."""
    page.get_by_role("button", name="Selected model").click()
    page.get_by_role("option", name=f"Select {MODEL} model").click()
    expect(page.get_by_role("button", name=f"Selected model: {MODEL}")).to_be_visible()


def asked_jobs(product: Product, count: int) -> list[Json]:
    """Returns the generate jobs, the oldest first, once there are this many and all have ended."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while time.monotonic() < deadline:
        jobs: list[Json] = product.get("/api/jobs", kind="generate")["jobs"]
        if len(jobs) >= count and all(job["status"] in ENDED for job in jobs):
            return jobs[::-1]
        time.sleep(1)
    raise AssertionError(f"{[texts_of(job)[-1][:80] for job in jobs]}")


def texts_of(job: Json) -> list[Any]:
    """Returns the contents of the conversation that a job continues."""
    return [message["content"] for message in job["request"]["messages"]]
