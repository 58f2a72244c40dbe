"""Signing in with a key: once, with the rights of its role, until the person signs out."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import DESKTOP, TIMEOUT_MS
from tests.browser.test_models import drop
from tests.e2e.product import LocalStack, local_stack
from tests.miniature import ADAPTERS, MINIATURE

KEYS = {"read": "key-of-a-reader", "submit": "key-of-a-submitter", "admin": "key-of-an-admin"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A service with a key of each role."""
    folder = tmp_path_factory.mktemp("keyed")
    lines = [f"{hashlib.sha256(key.encode()).hexdigest()} {role} {role}-key" for role, key in KEYS.items()]
    (folder / "keys").write_text("\n".join(lines))
    with local_stack(folder / "data", GRAFTWERK_API_KEYS_FILE=str(folder / "keys")) as running:
        yield running


@pytest.fixture
def open_keyed(browser: Browser, keyed: LocalStack) -> Iterator[Callable[[str], Page]]:
    """Opens a path of the service with keys in a fresh profile."""
    contexts = []

    def opened(path: str) -> Page:
        context = browser.new_context(base_url=keyed.url, viewport=DESKTOP, locale="en-GB")
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def test_a_page_asks_for_a_key_and_comes_back_after_it(
    open_keyed: Callable[[str], Page], axe: Callable[[Page], list[str]], screenshot: Callable[..., None]
) -> None:
    page = open_keyed("/jobs?status=failed")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert axe(page) == []
    sign_in(page, "a wrong key")
    expect(page.get_by_role("alert")).to_contain_text("unknown")
    screenshot(page, "sign-in")
    sign_in(page, KEYS["submit"])
    expect(page).to_have_url(re.compile(r"/jobs\?status=failed$"))
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")


def test_signing_out_ends_the_session(open_keyed: Callable[[str], Page]) -> None:
    page = open_keyed("/system")
    sign_in(page, KEYS["read"])
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto("/jobs")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_every_page_opens_for_a_reader(open_keyed: Callable[[str], Page]) -> None:
    page = open_keyed("/")
    sign_in(page, KEYS["read"])
    for path in ("/", "/merge", "/jobs", "/playground", "/system"):
        response = page.goto(path)
        assert response is not None
        assert response.status == 200
        expect(page.get_by_role("heading", level=1)).to_be_visible()


def test_a_request_of_another_site_changes_nothing(
    open_keyed: Callable[[str], Page], keyed: LocalStack, tmp_path: Path
) -> None:
    page = open_keyed("/")
    sign_in(page, KEYS["admin"])
    status = page.evaluate(
        "fetch('/api/jobs', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}'}).then(r => r.status)"
    )
    assert status == 403  # no CSRF token
    status = page.evaluate(
        """fetch('/api/jobs', {method: 'POST', body: '{}', headers: {'Content-Type': 'application/json',
        'X-CSRF-Token': document.querySelector('meta[name="csrf-token"]').content}}).then(r => r.status)"""
    )
    assert status == 422


def test_an_upload_of_a_session_becomes_a_model_that_an_admin_deletes(
    open_keyed: Callable[[str], Page],
) -> None:
    page = open_keyed("/")
    sign_in(page, KEYS["submit"])
    drop(page, {"uploaded.zip": MINIATURE / f"{ADAPTERS[0]}.zip"})
    page.get_by_role("button", name="Upload and import").click()
    page.get_by_role("link", name="Open uploaded").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("uploaded")
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)
    page.get_by_role("button", name="curl").click()
    expect(page.locator("#snippet")).to_contain_text("Authorization: Bearer $GRAFTWERK_API_KEY")

    page = open_keyed("/models/uploaded")
    sign_in(page, KEYS["admin"])
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("There are no models yet.")).to_be_visible()
