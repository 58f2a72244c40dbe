"""Clicks and entries before the scripts of a page have run: they are heard once these have."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import OpenPage
from tests.e2e.conftest import Line
from tests.e2e.product import Json, Product

SCRIPTS = re.compile(r"/static/(scripts|vendor)/(?!early\.js)")


@contextmanager
def without_scripts(page: Page, path: str) -> Iterator[None]:
    """Opens a path, and holds all of its scripts back but the first until the end of the block."""
    held: list[Route] = []
    is_over = False

    def hold(route: Route) -> None:
        if is_over:
            route.continue_()
        else:
            held.append(route)

    page.route(SCRIPTS, hold)
    page.goto(path, wait_until="commit")
    page.locator("#toasts").wait_for(state="attached")
    yield
    assert held, "no script was held back"
    is_over = True
    for route in held:
        route.continue_()


Step = Callable[[Page], None]

CLICKS: dict[str, tuple[str, str, Step]] = {
    "a model's deletion": (
        "/models/merged",
        "#delete",
        lambda page: expect(page.get_by_role("dialog")).to_contain_text("merged"),
    ),
    "a plan": (
        "/models/merged",
        "#convert-check",
        lambda page: expect(page.locator("#convert-plan")).not_to_be_empty(),
    ),
    "a search in the Hub": (
        "/",
        "#tab-hub",
        lambda page: expect(page.locator("#panel-hub")).to_be_visible(),
    ),
    "an adapter": (
        "/merge?base=llama",
        "[data-add=zh]",
        lambda page: expect(page.get_by_role("button", name="Remove zh")).to_be_visible(),
    ),
    "a tab whose page waits for data": (
        "/playground",
        "#tab-compare",
        lambda page: expect(page.locator("#panel-compare")).to_be_visible(),
    ),
    "a snippet": (
        "/models/merged",
        "[data-snippet=python]",
        lambda page: expect(page.locator("[data-snippet=python]")).to_have_attribute("aria-pressed", "true"),
    ),
}


@pytest.mark.parametrize("name", CLICKS)
def test_an_early_click_is_heard(open_page: OpenPage, line: Line, name: str) -> None:
    path, control, check = CLICKS[name]
    page = open_page("/system")
    with without_scripts(page, path):
        page.locator(control).click()
        page.locator(control).click()  # again, since nothing has happened
    check(page)


def test_an_early_cancelation_is_heard(open_page: OpenPage, product: Product, slow: Json) -> None:
    job = product.submit(**slow, target="early")
    page = open_page("/system")
    with without_scripts(page, f"/jobs/{job['id']}"):
        page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#job-head")).to_have_attribute("data-status", "canceled")


def test_an_early_entry_and_choice_are_heard(open_page: OpenPage, line: Line) -> None:
    page = open_page("/system")
    with without_scripts(page, "/"):
        page.locator("#filter input[type=search]").fill("merg")
        page.locator("#theme").select_option("dark")
    expect(page.locator("#list")).to_contain_text("1 model found")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page).to_have_url(re.compile("search=merg"))


def test_a_form_that_needs_no_script_is_sent_at_once(open_keyed: OpenPage) -> None:
    page = open_keyed("/login")
    with without_scripts(page, "/login"):
        page.locator("input[type=password]").fill("wrong")
        page.locator("form.sign-in button").click()
        expect(page.get_by_role("alert")).to_be_visible()
