"""Checks a built site: its pages load nothing from other hosts, their links lead to pages and headings, their code is code."""

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

EXTERNAL = re.compile(r"(https?:)?//", re.IGNORECASE)
CSS_RESOURCE = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^)'\"\s]+)", re.IGNORECASE)
LOADED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "video": "src",
    "audio": "src",
}
NOT_LOADED = {"canonical", "alternate", "next", "prev"}
"""Relations of `link` elements that browsers do not fetch."""


@dataclass
class Page(HTMLParser):
    """Identifiers, links and loaded resources of one page."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects the attributes that matter of one element."""
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        fetched = tag != "link" or found.get("rel") not in NOT_LOADED
        if tag in LOADED and fetched and found.get(LOADED[tag]):
            self.resources.append(str(found[LOADED[tag]]))


def read_page(file: Path) -> Page:
    """Returns what a page of the site contains."""
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def external_resources(site: Path) -> list[str]:
    """Returns resources that a reader's browser would fetch from another host."""
    found = [
        f"{file.relative_to(site)}: {resource}"
        for file in sorted(site.rglob("*.html"))
        for resource in read_page(file).resources
        if EXTERNAL.match(resource)
    ]
    for file in sorted(site.rglob("*.css")):
        found += [f"{file.relative_to(site)}: {url}" for url in CSS_RESOURCE.findall(file.read_text("utf-8"))]
    return found


def broken_links(site: Path) -> list[str]:
    """Returns links within the site that lead to no file or no heading."""
    pages = {file.resolve(): read_page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    return [
        f"{file.relative_to(site.resolve())}: {link}"
        for file, page in sorted(pages.items())
        for link in page.links
        if ":" not in link.partition("/")[0]
        and not EXTERNAL.match(link)
        and not _leads(file, unquote(link), pages)
    ]


def broken_blocks(site: Path) -> list[str]:
    """Returns pages that show the fence of a code block, which was not understood as one."""
    pages = [
        file for file in sorted(site.rglob("*.html")) if re.search(r"<(p|code)>```", file.read_text("utf-8"))
    ]
    return [f"{file.relative_to(site)}: ```" for file in pages]


def _leads(file: Path, link: str, pages: dict[Path, Page]) -> bool:
    path, anchor = urldefrag(link)
    target = (file.parent / path).resolve() if path else file
    if target.is_dir():
        target /= "index.html"
    return target.is_file() and (not anchor or target not in pages or anchor in pages[target].ids)


def main(site: Path) -> int:
    """Prints the findings; returns the exit status."""
    findings = [*external_resources(site), *broken_links(site), *broken_blocks(site)]
    sys.stdout.writelines(f"{finding}\n" for finding in findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
