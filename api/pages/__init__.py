"""Pages for browsers: one file per page, rendered on the server; `layout.py` is what they share.

Fragments that replace a part of a page are views of the same file. Everything else that a page does goes through the
HTTP API, as for any other client.
"""

from flask import Flask

from api.pages import jobs, language, layout, merge, models, playground, reference, sentences, system

__all__ = ["register"]


def register(app: Flask) -> None:
    """Adds the pages, their languages and the documentation of the API to an application."""
    language.register(app)
    layout.register(app)
    for page in (models, merge, jobs, playground, system):
        app.register_blueprint(page.page)
    app.register_blueprint(reference.reference)
    app.register_blueprint(sentences.page)
