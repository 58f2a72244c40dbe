"""The language of code, messages and documentation: plain technical English, one mood in docstrings.

A word is banned where it is a metaphor of this project or a turn of phrase that slows a reader down. The glossary in
`docs/architecture.md` has the words to use. `ALLOWED_OPENINGS` and `ALLOWED_WORDS` only ever go down.
"""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("api", "services", "worker", "client", "bench", "tests")
TEXTS = (
    *(
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "Makefile",
        "docs/**/*.md",
        "examples/**/*.md",
    ),
    *("tests/fixtures/**/*.md", "client/*.md", "api/templates/**/*.html", "api/static/scripts/*.js"),
)
ALLOWED_OPENINGS = {"api": 0, "services": 0, "worker": 0, "client": 0, "bench": 0, "tests": 0}
ALLOWED_WORDS = {"api": 0, "services": 2, "worker": 1, "client": 0, "bench": 0, "tests": 4, "texts": 0}

QUESTION = re.compile(r"\W*(What|Whether|How|Which|Where|Why|Who|When)\b")
BANNED = re.compile(
    r"""\b(
        whatever | nobody | somebody | anybody | everybody | shelf | shelves | pulse | deaf | anew | vain
        | house | doors? | seats? | tidy | makes\ up\ for | as\ it\ stands | so\ many | (?<!each\ )of\ which
        | that\ are\ none | save\ for | besides? (?=\ (the|it|its|them|a|an|other|others)\b) | a\ line\ each
        | (?<!there\ )is\ no\ (?!longer\b|more\b|such\b|need\b|way\b|point\b) | lets\ go | set\ aside
    )\b""",
    re.VERBOSE | re.IGNORECASE,
)


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Docstrings of modules, classes, functions, and of the constants and fields that one follows."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        for before, statement in zip([None, *body], body, strict=False):
            follows = (before is None and documented) or isinstance(before, (ast.Assign, ast.AnnAssign))
            value = statement.value if follows and isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value


def python_files(area: str) -> list[Path]:
    return sorted(path for path in (ROOT / area).rglob("*.py") if path != Path(__file__))


def place(path: Path, line: int, text: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {text.strip().splitlines()[0][:90]}"


def openings(area: str) -> list[str]:
    """Docstrings that begin with a question word."""
    return [
        place(path, found.lineno, found.value)
        for path in python_files(area)
        for found in docstrings(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(found.value, str) and QUESTION.match(found.value)
    ]


def banned_in_code(area: str) -> list[str]:
    """Banned words in strings and comments; names are not looked at."""
    texts = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    found = []
    for path in python_files(area):
        with path.open("rb") as file:
            tokens = [token for token in tokenize.tokenize(file.readline) if token.type in texts]
        for token in tokens:
            for number, line in enumerate(token.string.splitlines()):
                if BANNED.search(line):
                    found.append(place(path, token.start[0] + number, line))
    return found


def banned_in_texts() -> list[str]:
    """Banned words in documentation, pages and their scripts."""
    return [
        place(path, number, line)
        for pattern in TEXTS
        for path in sorted(ROOT.glob(pattern))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if BANNED.search(line)
    ]


@pytest.mark.parametrize("area", CODE)
def test_docstrings_begin_with_a_noun_or_a_verb(area: str) -> None:
    found = openings(area)
    assert len(found) <= ALLOWED_OPENINGS[area], "\n".join(found)


@pytest.mark.parametrize("area", CODE)
def test_strings_and_comments_hold_no_private_words(area: str) -> None:
    found = banned_in_code(area)
    assert len(found) <= ALLOWED_WORDS[area], "\n".join(found)


def test_documentation_and_pages_hold_no_private_words() -> None:
    found = banned_in_texts()
    assert len(found) <= ALLOWED_WORDS["texts"], "\n".join(found)
