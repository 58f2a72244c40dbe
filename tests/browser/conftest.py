"""A browser, and the running product with the miniature's models.

A test fails if a page logs an error: a script that throws, a file that is missing, something that the policy refuses.
`--screenshots FOLDER` keeps the pictures that the tests take; without it they are taken and thrown away.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.e2e.conftest import hub, incoming, line, product, questions, slow, stack

__all__ = ["hub", "incoming", "line", "product", "questions", "slow", "stack"]

HERE = Path(__file__).parent
AXE = HERE.parent / "js" / "node_modules" / "axe-core" / "axe.min.js"
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
TIMEOUT_MS = 30_000

SHARED = {"llama", "llama-hf", "zh", "alpaca", "merged", "slow", "slow-adapter"}
"""Models that several tests use; those of one test are removed after it, so that no other finds them."""

OpenPage = Callable[..., Page]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the folder of the screenshots."""
    parser.addoption("--screenshots", type=Path, default=None, help="folder for the pictures of the pages")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks these tests."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    expect.set_options(timeout=TIMEOUT_MS)
    executable = shutil.which("chromium")
    assert executable, "Chromium is needed: apt-get install chromium fonts-noto-cjk"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(autouse=True)
def only_shared_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """Removes the models that a test has made; jobs that still need one are canceled."""
    yield
    if "product" not in request.fixturenames:
        return
    product = request.getfixturevalue("product")
    for job in product.get("/api/jobs", limit=200)["jobs"]:
        if job["status"] in ("queued", "running"):
            product.http.post(f"/api/jobs/{job['id']}/cancel")
            product.wait(job["id"])
    for name in set(product.model_names()) - SHARED:
        assert product.http.delete(f"/api/models/{name}").status_code in (204, 404)


@pytest.fixture
def open_page(browser: Browser, product: Any) -> Iterator[OpenPage]:
    """Opens a path of the product in a fresh profile; keywords are options of a Playwright context."""
    contexts, errors = [], list[str]()

    def opened(path: str, **options: Any) -> Page:
        defaults = {
            "base_url": product.url,
            "viewport": DESKTOP,
            "locale": "en-GB",
            "timezone_id": "Europe/Berlin",
        }
        context = browser.new_context(**(defaults | options))
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.extend(_problem(message)))
        page.on("pageerror", lambda error: errors.append(f"uncaught: {error}"))
        page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


def _problem(message: ConsoleMessage) -> list[str]:
    # a refusal by the API is part of many tests; Chromium logs each response of 4xx
    expected = "Failed to load resource: the server responded with a status of 4"
    if message.type != "error" or message.text.startswith(expected):
        return []
    return [f"{message.location.get('url')}: {message.text}"]


@pytest.fixture
def screenshot(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Takes a picture of a page under a name."""
    folder: Path = request.config.getoption("--screenshots") or tmp_path

    def taken(page: Page, name: str, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", animations="disabled", **options)

    return taken


@pytest.fixture(scope="session")
def axe() -> Callable[[Page], list[str]]:
    """Returns axe-core's serious and critical findings about a page, one line each."""
    source = AXE.read_text(encoding="utf-8")

    def findings(page: Page) -> list[str]:
        page.evaluate(source)
        report = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert report["passes"], "axe-core checked nothing"
        return [
            f"{violation['id']}: {violation['help']}: {node['target']}"
            for violation in report["violations"]
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]

    return findings
