"""docs/architecture.md and CONTRIBUTING.md name files that exist, and every package is described."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOTS = ("api", "worker", "services", "client", "tests", "bench", "deploy", "examples", "docs")
NAMED = re.compile(rf"`((?:{'|'.join(ROOTS)})/[\w./<>-]*|[A-Z]+\.md|pyproject\.toml)`")


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_on_the_page_exists(page: str) -> None:
    named = set(NAMED.findall((ROOT / page).read_text(encoding="utf-8")))
    assert len(named) > 10
    missing = [path for path in named if not list(ROOT.glob(re.sub(r"<\w+>", "*", path).rstrip("/")))]
    assert sorted(missing) == []


def test_every_package_is_named() -> None:
    packages = {
        f"{path.parent.relative_to(ROOT)}/"
        for area in ("api", "worker", "services", "client/graftwerk")
        for path in (ROOT / area).rglob("__init__.py")
    } - {"services/"}
    assert sorted(packages - set(NAMED.findall(PAGE))) == []


def test_the_layers_are_those_that_import_linter_checks() -> None:
    contracts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (layers,) = re.findall(r'name = "layers of the library".*?layers = \[(.*?)\]', contracts, re.DOTALL)
    checked = re.findall(r'"([^"]+)"', layers)
    (drawn,) = re.findall(r"^services:\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert [line.strip() for line in drawn.splitlines()] == checked


def test_the_glossary_is_in_alphabetical_order() -> None:
    glossary = PAGE.split("## Glossary")[1]
    words = re.findall(r"^\| ([^|]+?) \| [A-Z`]", glossary, re.MULTILINE)
    assert len(words) > 20
    assert words == sorted(words, key=str.lower)
