"""Catalogues of the pages' texts: `python deploy/translations.py` extracts, updates and compiles them.

Each page has a domain with the texts of its templates and its view; texts of several pages belong to `layout`. The domain
`service` has the sentences of the service itself (`deploy/sentences.py`).
"""

import io
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

API = Path(__file__).parents[1] / "api"
sys.path[:0] = [str(API.parent), str(Path(__file__).parent)]

import sentences  # noqa: E402

from api.errors import HTTP_CODES  # noqa: E402
from api.pages.language import DOMAINS, LANGUAGES, TRANSLATIONS  # noqa: E402
from api.pages.sentences import DOMAIN as SERVICE  # noqa: E402
from api.pages.sentences import VALUES  # noqa: E402

LAYOUT = "layout"
KEYWORDS = {"_": None, "gettext": None, "ngettext": (1, 2), "lazy_gettext": None}
WIDTH = 110
DATE = datetime(2026, 11, 27, tzinfo=UTC)
JINJA = {"trimmed": "true", "newstyle_gettext": "true"}


def sources(domain: str) -> list[Path]:
    """Returns the files whose texts belong to a domain."""
    if domain == LAYOUT:
        own = [API / "pages" / f"{name}.py" for name in DOMAINS if name != LAYOUT]
        shared = [path for path in sorted((API / "pages").glob("*.py")) if path not in own]
        return [API / "signin.py", *shared, *sorted((API / "templates").glob("*.html"))]
    return [
        *sorted((API / "pages").glob(f"{domain}.py")),
        *sorted((API / "templates" / domain).rglob("*.html")),
    ]


def template_of(domain: str) -> Catalog:
    """Returns the catalogue of a domain's texts without translations."""
    catalog = Catalog(project="Graftwerk", charset="utf-8")
    if domain == SERVICE:
        for text, values in sentences.sentences(HTTP_CODES):
            comments = [f"{{{number}}}: {value}" for number, value in enumerate(values, 1)]
            catalog.add(text, None, auto_comments=comments)
        for text in VALUES:
            catalog.add(text, None, auto_comments=["words around names in a value"])
        return catalog
    for path in sources(domain):
        method = "python" if path.suffix == ".py" else "jinja2"
        name = path.relative_to(API.parent).as_posix()
        for _, message, comments, context in extract_from_file(
            method, path, KEYWORDS, options=JINJA if method == "jinja2" else None
        ):
            catalog.add(message, None, [(name, 0)], auto_comments=comments, context=context)
    return catalog


def catalog_files() -> Iterator[tuple[str, Path]]:
    """Yields the domain and the file of each catalogue; the texts themselves are English."""
    for language in LANGUAGES:
        if language != "en":
            for domain in (*DOMAINS, SERVICE):
                yield domain, TRANSLATIONS / language / "LC_MESSAGES" / f"{domain}.po"


def read(file: Path) -> Catalog:
    """Returns the catalogue of a file, an empty one if there is none."""
    if not file.exists():
        return Catalog(locale=file.parents[1].name, domain=file.stem, charset="utf-8")
    with file.open("rb") as opened:
        return read_po(opened, locale=file.parents[1].name, domain=file.stem)


def describe(catalog: Catalog) -> None:
    """Sets the header of a catalogue; it holds no dates of changes, which every update would change."""
    catalog.header_comment = "# Chinese texts of the pages; `make translations` updates this file."
    catalog.fuzzy = False
    catalog.project, catalog.version = "Graftwerk", "1"
    catalog.msgid_bugs_address = catalog.last_translator = catalog.language_team = ""
    catalog.creation_date = catalog.revision_date = DATE


def compiled(catalog: Catalog) -> bytes:
    """Returns the content of a catalogue's `.mo` file."""
    buffer = io.BytesIO()
    write_mo(buffer, catalog)
    return buffer.getvalue()


def update(domain: str, file: Path) -> Catalog:
    """Writes a catalogue with the present texts and the known translations, and compiles it."""
    catalog = read(file)
    catalog.update(template_of(domain), no_fuzzy_matching=True)
    catalog.obsolete.clear()
    describe(catalog)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        write_po(opened, catalog, width=WIDTH, no_location=True, omit_header=False, sort_output=False)
    file.with_suffix(".mo").write_bytes(compiled(catalog))
    return catalog


def main() -> None:
    """Updates all catalogues and prints the texts that have no translation."""
    for domain, file in catalog_files():
        missing = [
            message.id
            for message in update(domain, file)
            if message.id and not (message.string and all(message.string))
        ]
        print(f"{file.relative_to(API.parent)}: {len(missing)} texts without a translation")
        for text in missing:
            print(f"    {text}")


if __name__ == "__main__":
    main()
