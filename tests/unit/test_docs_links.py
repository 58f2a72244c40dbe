"""Links of the pages outside of the site lead to files; hosts of external links are listed; pictures load nothing.

Links of the site, with their headings: `tests/contract/test_docs_site.py`.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "client/README.md",
    "examples/miniature/README.md",
]
EXTERNAL_HOSTS = {
    "arxiv.org",
    "github.com",
    "huggingface.co",
    "keepachangelog.com",
    "semver.org",
    "tus.io",
    "www.rfc-editor.org",
    "www.standardwebhooks.com",
}
"""Hosts that links lead to; they are not visited by a test."""

LINK = re.compile(r"\]\(([^)\s]+)\)")
EXAMPLE = re.compile(r"127\.0\.0\.1|localhost|example|hub\.|vllm")


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_to_a_file(page: str) -> None:
    links = [
        link for link in LINK.findall((ROOT / page).read_text("utf-8")) if not link.startswith(("http", "#"))
    ]
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link.partition("#")[0]).exists()]
    assert missing == []


def test_the_hosts_of_external_links_are_known() -> None:
    texts = [
        path.read_text("utf-8") for path in [*(ROOT / "docs").rglob("*.md"), *(ROOT / page for page in PAGES)]
    ]
    links = {link for text in texts for link in LINK.findall(text) if link.startswith("http")}
    hosts = {link.split("/")[2] for link in links if not EXAMPLE.search(link)}
    assert hosts - EXTERNAL_HOSTS == set()


def test_the_readme_is_short_and_shows_a_picture() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert "](docs/img/terminal.svg)" in text


def test_a_picture_loads_nothing_from_elsewhere() -> None:
    pictures = sorted((ROOT / "docs").rglob("*.svg"))
    assert len(pictures) > 5
    for picture in pictures:
        assert not re.search(
            r"url\(|@import|href=|@font-face.*src", re.sub(r"url\(#[\w-]+\)", "", picture.read_text("utf-8"))
        ), picture
