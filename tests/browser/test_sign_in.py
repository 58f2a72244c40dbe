"""Signing in with a key: once, with the rights of its role, until the person signs out."""

import re
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.dropping import drop
from tests.browser.keys import KEYS, sign_in
from tests.miniature import ADAPTERS, MINIATURE


def test_a_page_asks_for_a_key_and_comes_back_after_it(
    open_keyed: OpenPage, axe: Callable[[Page], list[str]], screenshot: Callable[..., None]
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


def test_signing_out_ends_the_session(open_keyed: OpenPage) -> None:
    page = open_keyed("/system")
    sign_in(page, KEYS["read"])
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto("/jobs")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_every_page_opens_for_a_reader(open_keyed: OpenPage) -> None:
    page = open_keyed("/")
    sign_in(page, KEYS["read"])
    for path in ("/", "/merge", "/jobs", "/playground", "/system"):
        response = page.goto(path)
        assert response is not None
        assert response.status == 200
        expect(page.get_by_role("heading", level=1)).to_be_visible()


def test_a_request_of_another_site_changes_nothing(open_keyed: OpenPage) -> None:
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
    open_keyed: OpenPage,
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
