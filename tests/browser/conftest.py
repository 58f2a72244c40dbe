"""A browser, and the running product with the miniature's models.

A test fails if a page logs an error: a script that throws, a file that is missing, something that the policy refuses.
`--screenshots FOLDER` keeps the pictures that the tests take; without it they are taken and thrown away.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.browser.keys import KEYS, KEYS_FILE
from tests.browser.looks import DESKTOP
from tests.e2e.conftest import Line, hub, incoming, line, product, questions, slow, stack
from tests.e2e.product import LocalStack, Product, local_stack
from tests.reference.tensor_files import write_adapter, write_base

__all__ = ["hub", "incoming", "line", "product", "questions", "slow", "stack"]

HERE = Path(__file__).parent
AXE = HERE.parent / "js" / "node_modules" / "axe-core" / "axe.min.js"
TIMEOUT_MS = 120_000
"""Longest time until a page shows what a test expects: many times that of a quiet machine."""
TEST_SECONDS = 900
"""Longest time of a test; the walks take the longest."""

SHARED = {"llama", "llama-hf", "zh", "alpaca", "merged", "slow", "slow-adapter", "tool-model"}
"""Models that several tests use."""

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
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


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


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A service with a key of each role."""
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text(KEYS_FILE)
    with local_stack(folder / "data", GRAFTWERK_API_KEYS_FILE=str(folder / "keys")) as running:
        yield running


@pytest.fixture(autouse=True)
def only_shared_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """Removes the models that a test has made, so that no other finds them; jobs that still need one are canceled."""
    yield
    if "product" in request.fixturenames:
        product: Product = request.getfixturevalue("product")
        for job in product.get("/api/jobs", limit=200)["jobs"]:
            if job["status"] in ("queued", "running"):
                product.http.post(f"/api/jobs/{job['id']}/cancel")
                product.wait(job["id"])
        remove_models(product.http, SHARED)
    if "keyed" in request.fixturenames:
        address = request.getfixturevalue("keyed").url
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEYS['admin']}"}) as http:
            remove_models(http, set())


def remove_models(http: httpx.Client, kept: set[str]) -> None:
    names = {model["name"] for model in http.get("/api/models").json()["models"]}
    for name in names - kept:
        assert http.delete(f"/api/models/{name}").status_code in (204, 404)


@pytest.fixture
def open_page(browser: Browser, product: Product) -> Iterator[OpenPage]:
    """Opens a path of the product in a fresh profile; keywords are options of a Playwright context."""
    with pages_of(browser, product.url) as opened:
        yield opened


@pytest.fixture
def open_keyed(browser: Browser, keyed: LocalStack) -> Iterator[OpenPage]:
    """Opens a path of the service with keys, as `open_page`."""
    with pages_of(browser, keyed.url) as opened:
        yield opened


@contextmanager
def pages_of(browser: Browser, address: str) -> Iterator[OpenPage]:
    """Provides a function that opens pages of a service; closes them at the end, and fails if one has logged an error."""
    contexts, errors = [], list[str]()

    def opened(path: str, **options: Any) -> Page:
        defaults = {
            "base_url": address,
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

    try:
        yield opened
    finally:
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
        if options.get("full_page"):
            page.evaluate("scrollTo(0, 0)")  # else the header is drawn where the page was scrolled to
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


@pytest.fixture
def crowd(line: Line, stack: LocalStack) -> None:
    """More models and adapters than a selection lists."""
    for number in range(40):
        write_base(stack.models_dir / f"base-{number:02}", pieces=101)
        write_adapter(stack.models_dir / f"lora-{number:02}")
