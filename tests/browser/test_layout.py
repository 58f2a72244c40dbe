"""Parts that all pages share: languages, themes, accessibility, width of a phone."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.looks import LOOKS, fits
from tests.e2e.conftest import Line

PAGES = ("/", "/merge", "/jobs", "/playground", "/system", "/docs")


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("path", PAGES)
def test_axe_has_no_serious_finding(
    open_page: OpenPage, line: Line, axe: Callable[[Page], list[str]], path: str, look: str
) -> None:
    page = open_page(path, **LOOKS[look])
    page.wait_for_load_state("load")
    assert axe(page) == []


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_not_wider_than_a_phone(open_page: OpenPage, line: Line, path: str) -> None:
    page = open_page(path, **LOOKS["phone"])
    assert fits(page)


def test_the_language_of_the_browser_is_used_and_can_be_switched(open_page: OpenPage) -> None:
    page = open_page("/jobs", locale="zh-CN")
    expect(page.get_by_role("heading", level=1)).to_have_text("任务")
    page.locator("#language").select_option("en")
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    page.goto("/")
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_the_theme_can_be_chosen_and_is_kept(open_page: OpenPage) -> None:
    page = open_page("/system", color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("#theme").select_option("dark")
    dark = page.evaluate(background)
    assert light != dark
    page.reload()
    assert page.evaluate(background) == dark


def test_the_first_tab_skips_to_the_content(open_page: OpenPage) -> None:
    page = open_page("/jobs")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the content")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#main$"))
