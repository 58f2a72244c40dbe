"""Puts the pages of the documentation's site together in a folder: docs/, pages of the root, the HTTP reference.

The pages link as they do in the repository. Here links from and to the root are changed to where the site has the page,
and other files of the repository that a page links to are copied.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from docs_http_reference import http_reference, openapi_document

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DEFAULT_FOLDER = ROOT / "build" / "docs"
ROOT_PAGES = {
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/miniature/README.md": "miniature.md",
}
"""Pages outside of docs/, and their places in the site."""
HTTP_REFERENCE = "reference/http.md"
FENCE_OPTIONS = re.compile(r"^( *```\w+) [^\n]+$", re.MULTILINE)
"""Words after the language of a code block, which are for the tests."""

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def place_of(file: Path) -> Path:
    """Returns where the site has a file of the repository, relative to the site's root."""
    inside = file.relative_to(ROOT).as_posix()
    if inside in ROOT_PAGES:
        return Path(ROOT_PAGES[inside])
    return file.relative_to(DOCS) if file.is_relative_to(DOCS) else Path("files") / inside


def relinked(text: str, source: Path, folder: Path) -> str:
    """Returns a page as the site shows it: its links to other files of the repository lead to their places there."""
    here = place_of(source).parent

    def link(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / found[1]))
        if not target.is_relative_to(ROOT) or not target.is_file():
            return found[0]  # the site's builder refuses it
        place = place_of(target)
        if place.parts[0] == "files":
            _copy(target, folder / place)
        return os.path.relpath(place, here) + (found[2] or "")

    return LINK.sub(link, FENCE_OPTIONS.sub(r"\1", text))


def build(folder: Path) -> None:
    """Writes the folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for source in sorted(DOCS.rglob("*")):
        if source.is_file() and source.suffix != ".md":
            _copy(source, folder / place_of(source))
    for source in [*sorted(DOCS.rglob("*.md")), *(ROOT / page for page in ROOT_PAGES)]:
        _write(folder / place_of(source), relinked(source.read_text(encoding="utf-8"), source, folder))
    _write(folder / HTTP_REFERENCE, http_reference(openapi_document()))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if sys.argv[1:] else DEFAULT_FOLDER)
