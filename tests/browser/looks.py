"""Options of a browser's profile: sizes of the screen, looks of the pages."""

from collections.abc import Mapping
from typing import Any

from playwright.sync_api import Page

DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}

LOOKS: Mapping[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE, "has_touch": True, "is_mobile": True},
    "chinese": {"locale": "zh-CN"},
}
"""Looks in which each page is tested, as options of a Playwright context."""

LOOKS_WITH_CHINESE_PHONE: Mapping[str, dict[str, Any]] = {
    **LOOKS,
    "chinese-phone": LOOKS["phone"] | LOOKS["chinese"],
}
"""In addition the narrowest page with the other language, for pages with much text in rows."""


def fits(page: Page) -> bool:
    """Returns True if a page is not wider than its screen."""
    assert page.viewport_size is not None
    return bool(page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"])
