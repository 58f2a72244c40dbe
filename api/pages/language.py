"""The language of the pages: chosen by the cookie `language`, otherwise by the browser's `Accept-Language`.

Catalogues are in `api/translations/<language>/LC_MESSAGES/`, one domain for each page and `layout` for what all share.
`make translations` extracts the texts, updates the catalogues and compiles them.
"""

from pathlib import Path

from flask import Flask, request
from flask_babel import Babel

LANGUAGES = {"en": "English", "zh": "中文"}
"""Languages by code, with their own names."""

COOKIE = "language"
DOMAINS = ("layout", "models", "merge", "jobs", "playground", "system", "reference")
TRANSLATIONS = Path(__file__).parents[1] / "translations"


def register(app: Flask) -> None:
    """Sets up translation for an application."""
    Babel(
        app,
        default_locale="en",
        default_timezone="UTC",
        default_domain=";".join(DOMAINS),
        default_translation_directories=";".join([str(TRANSLATIONS)] * len(DOMAINS)),
        locale_selector=selected_language,
    )


def selected_language() -> str:
    """Returns the code of the language of the current request."""
    chosen = request.cookies.get(COOKIE)
    if chosen in LANGUAGES:
        return chosen
    # in the order of the browser's preference; `zh-TW` and `zh-CN` are both `zh`
    accepted = (tag.partition("-")[0].lower() for tag, _ in request.accept_languages)
    return next((code for code in accepted if code in LANGUAGES), "en")
