"""The parts that all pages share: response headers, navigation, formats, errors as pages."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from flask import Blueprint, Flask, Response, render_template, request
from flask_babel import format_decimal, get_locale, lazy_gettext, ngettext
from werkzeug.exceptions import HTTPException

from api.errors import Problem, problem_of_error, problem_of_http_error
from api.pages import progress_names, sentences
from api.pages.language import LANGUAGES
from services.errors import GraftwerkError

PAGE_POLICY = "; ".join((
    "default-src 'self'", "img-src 'self' data:", "object-src 'none'", "base-uri 'none'", "form-action 'self'",
    "frame-ancestors 'none'",
))  # fmt: skip

THEMES = ("light", "dark")
"""Values of the cookie `theme`; without it the browser's preference counts."""

BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")
COUNT_UNITS = ("", "K", "M", "B", "T")

UPLOADS = re.compile(r"(\d+) uploads?")
"""Source of a model that was imported from uploads."""


class NavigationItem(NamedTuple):
    """An entry of the navigation: the page's view and its name; `icon` is a symbol of `icons.svg`."""

    endpoint: str
    title: Any
    icon: str


NAVIGATION = (
    NavigationItem("pages_models.models", lazy_gettext("Models"), "models"),
    NavigationItem("pages_merge.merge", lazy_gettext("New merge"), "merge"),
    NavigationItem("pages_jobs.jobs", lazy_gettext("Jobs"), "jobs"),
    NavigationItem("pages_playground.playground", lazy_gettext("Playground"), "playground"),
    NavigationItem("pages_system.system", lazy_gettext("System"), "system"),
)


def register(app: Flask) -> None:
    """Adds filters, common values of templates, and error pages to an application."""
    app.jinja_env.filters.update(
        bytes=format_bytes, count=format_count, duration=format_duration, source=format_source
    )
    app.jinja_env.filters.update(
        sentence=sentences.sentence, stage_name=progress_names.stage_name, unit_name=progress_names.unit_name
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.context_processor(common_values)


def common_values() -> dict[str, Any]:
    """Returns the values that every template may use."""
    theme = request.cookies.get("theme")
    return {
        "navigation": NAVIGATION,
        "language": str(get_locale()),
        "languages": LANGUAGES,
        "theme": theme if theme in THEMES else "auto",
        **progress_names.names(),
    }


def page_blueprint(name: str) -> Blueprint:
    """Returns a blueprint for a page, whose errors are pages as well."""
    page = Blueprint(f"pages_{name}", f"api.pages.{name}")
    page.register_error_handler(GraftwerkError, error_page)
    page.register_error_handler(HTTPException, error_page)
    return page


def page_response(template: str, status: int = 200, *, policy: str = PAGE_POLICY, **values: Any) -> Response:
    """Returns a rendered template as a page, or as a fragment of one."""
    response = Response(render_template(template, **values), status, mimetype="text/html")
    response.headers["Content-Security-Policy"] = policy
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Vary"] = "Cookie, Accept-Language, HX-Request"
    return response


def is_fragment_request() -> bool:
    """Returns True if htmx replaces a part of a page with the response, and not a page that the browser goes back to."""
    return request.headers.get("HX-Request") == "true" and request.headers.get("HX-Request-Type") != "full"


def error_page(error: Exception) -> Response:
    """Returns an error of a page's view as a page, or as a notice inside one."""
    problem = _problem(error)
    template = "error_fragment.html" if is_fragment_request() else "error.html"
    return page_response(template, problem.status, problem=problem)


def _problem(error: Exception) -> Problem:
    if isinstance(error, GraftwerkError):
        return problem_of_error(error)
    assert isinstance(error, HTTPException)  # the handlers are registered for these two
    return problem_of_http_error(error)


# ---- formats ------------------------------------------------------------------------------------------


def format_bytes(value: float | None) -> str:
    """Returns a number of bytes in decimal units, such as `13.5 GB`."""
    return "" if value is None else _scaled(value, BYTE_UNITS)


def format_count(value: float | None) -> str:
    """Returns a number in the units of the field, such as `6.74 B` parameters."""
    return "" if value is None else _scaled(value, COUNT_UNITS)


def _scaled(value: float, units: tuple[str, ...]) -> str:
    size = float(value)
    for unit in units:
        if abs(size) < 1000 or unit == units[-1]:
            break
        size /= 1000
    digits = "#,##0" if unit == units[0] else "#,##0.0" if abs(size) >= 10 else "#,##0.00"
    return f"{format_decimal(size, digits)} {unit}".rstrip()


def format_duration(seconds: float | None) -> str:
    """Returns a duration with its two largest units, such as `3 min 20 s`."""
    if seconds is None:
        return ""
    if 0 < seconds < 0.05:
        return f"< {format_decimal(0.1, '0.0')} s"
    if seconds < 10:
        return f"{format_decimal(seconds, '0.0')} s"
    parts = list(_parts(round(seconds)))
    return " ".join(parts[:2])


def _parts(seconds: int) -> Iterator[str]:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, seconds = divmod(seconds, size)
        if number:
            yield f"{number} {unit}"


def format_source(name: str) -> str:
    """Returns the source of an import in the language of the page: a number of uploads is the only one that has words."""
    found = UPLOADS.fullmatch(name)
    return ngettext("%(num)s upload", "%(num)s uploads", int(found[1])) if found else name
