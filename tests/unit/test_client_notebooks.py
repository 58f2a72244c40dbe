"""Jobs, results and models in notebooks: HTML that IPython shows, and progress below the cell."""

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from graftwerk import Client, Job, ModelSummary
from graftwerk.model_results import MergeResult
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from tests.unit.test_client_http import client_of, frame, job_json, stream

MODEL = {"name": "ab", "kind": "huggingface", "size_bytes": 13_500_000_000, "parameters": 6_738_415_616}
VOID = {"br", "hr", "img"}


class Page(HTMLParser):
    """Elements and texts of HTML; fails where an element is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.elements: set[str] = set()
        self.styles: set[str] = set()
        self.feed(html)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.elements.add(tag)
        assert {name for name, _ in attrs} <= {"style"}, attrs
        self.styles |= {value or "" for _, value in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.cells.append(data)


def test_a_job_is_a_table_of_its_state_and_result() -> None:
    result = {"model": MODEL, "adapters": [{"adapter": "zh", "scale": 0.5}], "bytes_written": 5000}
    job = Job.model_validate(job_json("succeeded", result=result, warnings=["slow disk"]))
    page = Page(job._repr_html_())
    assert page.elements == {"p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.cells[:5] == ["merge → ab", "id", "j1", "status", "succeeded"]
    for text in ("slow disk", "13.5 GB", "6,738,415,616", "bytes written", "5.0 kB", "0.5"):
        assert text in page.cells, text
    assert not any("color" in style for style in page.styles), "the colors are those of the theme"


def test_a_failed_job_names_its_error() -> None:
    error = {"code": "disk_full", "message": "3 GB are missing.", "hint": "Delete a model."}
    page = Page(Job.model_validate(job_json("failed", error=error))._repr_html_())
    assert {"failed", "disk_full", "3 GB are missing.", "Delete a model."} <= set(page.cells)


def test_every_text_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    job = job_json(
        "failed", request={"target": evil}, error={"code": "x", "message": evil}, metadata={evil: evil}
    )
    for html in (
        Job.model_validate(job)._repr_html_(),
        ModelSummary.model_validate(
            MODEL | {"name": evil, "problems": [evil], "lineage": {evil: [evil]}}
        )._repr_html_(),
        client_of(lambda _: httpx.Response(202, json=job)).submit({})._repr_html_(),
    ):
        page = Page(html)
        assert "script" not in page.elements
        assert any(evil in cell for cell in page.cells)


def test_long_lists_and_deep_objects_are_cut() -> None:
    files = [{"path": f"model-{number}.safetensors", "size_bytes": 1} for number in range(500)]
    deep: Any = {"end": 1}
    for _ in range(50):
        deep = {"in": deep}
    html = ModelSummary.model_validate(MODEL | {"files": files, "lineage": deep})._repr_html_()
    page = Page(html)
    assert "… and 480 more" in page.cells
    assert len(html) < 20_000
    vectors = client_of(lambda _: httpx.Response(200, json=EMBEDDED)).job("j1").refresh()._repr_html_()
    assert "… and 4,076 more" in vectors
    assert len(vectors) < 5_000


EMBEDDED = job_json(
    "succeeded", kind="embed",
    result={
        "embeddings": [[0.5] * 4096], "usage": {"prompt_tokens": 1, "total_tokens": 1}, "seconds": 1.0,
        "device": "cpu", "dtype": "float32",
    },
)  # fmt: skip


def test_representations_are_one_short_line() -> None:
    progress = {"stage": "writing", "done": 1, "total": 4, "unit": "bytes", "fraction": 0.25}
    running = Job.model_validate(job_json("running", progress=progress))
    assert repr(running) == "<Job j1 merge → ab: running, writing 25%>"
    model = ModelSummary.model_validate(MODEL)
    assert repr(model) == "<ModelSummary ab: huggingface, 6,738,415,616 parameters, 13.5 GB>"
    handle = client_of(lambda _: httpx.Response(202, json=job_json("queued"))).submit({})
    assert repr(handle) == "<JobHandle j1 merge → ab: queued>"
    assert repr(client_of(lambda _: httpx.Response(500)).job("j2")) == "<JobHandle j2>"
    result = MergeResult.model_construct(model=model, tensors=3)
    assert "model=<ModelSummary ab: huggingface" in repr(result)


# ---- IPython ------------------------------------------------------------------------------------------


class ZMQInteractiveShell(InteractiveShell):
    """A shell with the class name by which rich recognizes a notebook."""


@pytest.fixture
def notebook() -> Iterator[InteractiveShell]:
    """A notebook without a kernel; its variable `client` reaches a fake service."""
    config = Config({"HistoryManager": {"enabled": False}})
    yield ZMQInteractiveShell.instance(config=config, user_ns={"client": fake()})
    ZMQInteractiveShell.clear_instance()


def fake() -> Client:
    progress = {
        "stage": "writing tensors",
        "done": 1_000_000,
        "total": 4_000_000,
        "unit": "bytes",
        "fraction": 0.25,
    }
    frames = [
        frame("status", job_json("running"), "1-0"),
        frame("progress", {"id": "j1", "progress": progress}, "2-0"),
        frame("status", job_json("succeeded"), "3-0"),
    ]

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return stream(b"".join(frames))
        return httpx.Response(200, json=job_json("queued"))

    return client_of(handler)


def test_a_wait_in_a_notebook_replaces_one_display(notebook: InteractiveShell) -> None:
    with capture_output() as shown:
        done = notebook.run_cell("job = client.job('j1').wait(progress=True)")
    assert done.success, done.error_in_exec
    assert (shown.stdout, shown.stderr) == ("", "")
    outputs = shown.outputs
    ids = {output.transient["display_id"] for output in outputs}
    assert len(ids) == 1
    texts = [output.data["text/plain"] for output in outputs]
    assert "waiting" in texts[0]
    assert "writing tensors" in texts[2] and "1.0 MB of 4.0 MB" in texts[2]
    assert "done" in texts[-1]
    assert all("text/html" in output.data for output in outputs)


def test_a_job_at_the_end_of_a_cell_is_its_table(notebook: InteractiveShell) -> None:
    with capture_output() as shown:
        notebook.run_cell("client.job('j1').refresh()", silent=False)
    data, _ = notebook.display_formatter.format(notebook.user_ns["client"].job("j1").refresh())
    assert data["text/plain"] == "<Job j1 merge → ab: queued>"
    assert "queued" in Page(data["text/html"]).cells
    assert "queued" in shown.stdout
