"""Pages in Chinese: what is still English on them is a name, a number, code, or marked as English."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fakeredis import FakeRedis, FakeServer
from flask.testing import FlaskClient

from tests.api_client import client_of, import_request
from tests.unit.test_page_job_results import HOSTILE as HOSTILE_TEXT
from tests.unit.test_page_job_results import RESULTS, job_of, rendered
from tests.unit.test_page_models import HOSTILE, volume

__all__ = ["volume"]

pytestmark = pytest.mark.disable_socket

CHINESE = {"Accept-Language": "zh-CN"}
PAGES = (
    "/", "/merge", "/merge?base=llama&adapters=chinese-llama-lora", "/jobs", "/playground", "/system", "/models/absent", "/jobs/x",
    "/merge/bases?search=none", *(f"/models/{name}{part}" for name in ("llama", "merged", "small", "chinese-alpaca-lora") for part in ("", "/delete")),
)  # fmt: skip

UNREAD = {"script", "style", "code", "pre", "kbd"}
READ = ("aria-label", "title", "placeholder", "alt")
VOID = {"input", "link", "meta", "img", "br", "use", "path", "rect", "hr", "line", "polyline"}

CJK = re.compile(r"[\u4e00-\u9fff]")
WORDS = re.compile(r"[a-z]{3,}(?: [a-z]{2,})+", re.I)
"""Two English words: more than a name."""

NAMES = re.compile(
    r"Hugging Face|LM Studio|Docker Compose|docker compose up -d( worker-\w+)?|graftwerk serve|GET /api/models|"
    r"Llama \d \w+|Vicuna [\d.]+|JSON Schema|(?i:miniature) (chinese-)?\w+(-lora)?|with a call|Title of the card|File is not a zip file"
)
"""Names of products, commands, formats and models, and what the files of this test say."""

ENGLISH_VALUES = {
    "none",
    "more",
    "nothing",
    "and",
    "or",
    "source",
    "adapter",
    "queued",
    "running",
    "succeeded",
}
"""Single words of the service that a sentence or a list has had in English."""


class Reader(HTMLParser):
    """Collects the texts that a person reads or hears."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def _is_read(self) -> bool:
        return not any(tag in UNREAD or language == "en" for tag, language in self.open)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if self._is_read() and values.get("lang") != "en":
            self.texts += [text for name in READ if (text := values.get(name))]
        if tag not in VOID:
            self.open.append((tag, values.get("lang")))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if data.strip() and self._is_read():
            self.texts.append(" ".join(data.split()))


def english_in(page: str, *known: str) -> Iterator[str]:
    """Yields the texts of a page that have English words: two in a row, or one that the service has said."""
    reader = Reader()
    reader.feed(page)
    for text in reader.texts:
        rest = text
        for name in known:
            rest = rest.replace(name, "")
        rest = NAMES.sub("", rest)
        words = (
            set(re.findall(r"(?<![\w.-])[a-z]+(?![\w.-])", rest)) & ENGLISH_VALUES if CJK.search(rest) else ()
        )
        if WORDS.search(rest) or words:
            yield text


@pytest.fixture(scope="module")
def client(volume: Path) -> FlaskClient:
    client = client_of(volume, redis=FakeRedis(server=FakeServer()))
    jobs = [
        import_request(volume, "arriving"),
        {"kind": "merge", "base": "llama", "adapters": ["chinese-llama-lora"], "target": "new"},
        {"kind": "verify", "model": "merged"},
    ]
    for job in jobs:
        assert client.post("/api/jobs", json=job).status_code == 202
    return client


def test_english_is_found() -> None:
    page = '<p title="A tip of two">中文</p><p>现有：none。</p><code>not read</code><p lang="en">not read</p><p>Some words</p>'
    assert list(english_in(page)) == ["A tip of two", "现有：none。", "Some words"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_no_english_text(client: FlaskClient, path: str) -> None:
    page = client.get(path, headers=CHINESE).text
    assert CJK.search(page)
    assert list(english_in(page, HOSTILE)) == []


def test_the_pages_of_jobs_have_no_english_text(client: FlaskClient) -> None:
    jobs = client.get("/api/jobs").get_json()["jobs"]
    assert len(jobs) == 3
    for job in jobs:
        assert list(english_in(client.get(f"/jobs/{job['id']}", headers=CHINESE).text)) == []


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_has_no_english_text(tmp_path: Path, kind: str) -> None:
    page = rendered(tmp_path, "jobs/detail.html", job_of(kind, result=RESULTS[kind][0]), headers=CHINESE)
    said = (
        "The capital is Paris.",
        "The capital of <b>France</b>",
        "The capital",
        "It failed.",
        "I look.",
        HOSTILE_TEXT,
    )
    assert list(english_in(page, *said)) == []
