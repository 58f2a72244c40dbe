"""No output is wider than the terminal, or than 100 columns in a pipe."""

import io
import json
import unicodedata
from typing import Any

import httpx
import pytest
from graftwerk.lists import JobsView, ModelsView, main_facts
from graftwerk.models import Job
from graftwerk.progress_display import Bars
from graftwerk.tables import facts_view, plan_view
from rich.console import Console, RenderableType

from tests.client_service import Run, Service

LONG = "chinese-alpaca-plus-13b-with-a-name-of-ninety-six-characters-that-fits-no-column-of-any-table-00"
CHINESE = "微调后的中文羊驼模型，名字很长很长很长很长很长很长很长很长很长很长很长很长很长很长"
DIGEST = "735e336d89f0cef68ff79b01a05a26c9c4e52a388479c3698ddef46f62ac698a"

JOBS = [
    {
        "id": f"11111111-2222-3333-4444-55555555555{number}",
        "kind": "merge",
        "status": status,
        "created_at": "2020-01-02T03:04:05Z",
        "started_at": "2020-01-02T03:04:05Z",
        "request": {"target": target},
        "progress": {"stage": CHINESE, "done": 1, "total": 4, "unit": "bytes", "fraction": 0.25},
        "error": {"code": "a_code_that_is_long_enough_to_be_wide", "message": "m"} if status == "failed" else None,
        "queue_position": 12345 if status == "queued" else None,
    }
    for number, (status, target) in enumerate(
        [("running", LONG), ("failed", CHINESE), ("queued", "[red]x[/]"), ("succeeded", "a")]
    )
]  # fmt: skip

MODEL = {
    "name": LONG,
    "kind": "huggingface",
    "size_bytes": 26_000_000_000,
    "parameters": 13_015_864_320,
    "dtypes": ["float16", "float32"],
    "vocabulary_size": 49954,
    "known_as": CHINESE,
    "digest": DIGEST,
    "created_at": "2020-01-02T03:04:05.678Z",
    "files": [{"path": f"deep/folder/{LONG}.safetensors", "size_bytes": 5}],
    "problems": [f"The tensor {LONG} is missing.", CHINESE],
    "lineage": {
        "operation": "merge",
        "job_id": "11111111-2222-3333-4444-555555555555",
        "inputs": [
            {"role": "base", "name": LONG, "digest": DIGEST},
            {"role": "adapter", "name": CHINESE, "digest": DIGEST, "scale": 0.5},
        ],
        "options": {"adapters": [{"name": LONG, "scale": 0.5}]},
    },
}

PLAN = {
    "kind": "merge",
    "reads": [{"name": LONG, "role": "base", "size_bytes": 1}, {"name": CHINESE, "role": "adapter", "size_bytes": 2}],
    "writes": {"name": LONG, "tokenizer_of": CHINESE},
    "output_bytes": 26_000_000_000,
    "warnings": [],
}  # fmt: skip


def columns(line: str) -> int:
    """Returns the cells that a line takes on a terminal, by the Unicode Character Database."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def widest(text: str) -> int:
    return max(columns(line) for line in text.splitlines())


def views() -> dict[str, RenderableType]:
    return {
        "jobs": JobsView([Job.model_validate(job) for job in JOBS]),
        "models": ModelsView([MODEL, {"name": CHINESE, "kind": "unknown", "size_bytes": 1}]),
        "models show": facts_view(main_facts(MODEL)),
        "models show --verbose": facts_view(MODEL),
        "--dry-run": plan_view(PLAN),
    }


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("name", views())
def test_a_table_fits_the_terminal_and_loses_no_name(name: str, width: int) -> None:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, color_system=None, highlight=False
    )
    console.print(views()[name])
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert widest(text) <= width
    squeezed = "".join(text.split())
    assert "chinese-alpaca" in squeezed
    assert "微调后" in squeezed


def test_the_id_of_a_job_is_never_broken() -> None:
    jobs = [Job.model_validate(JOBS[3])]
    for width, lines in ((100, 2), (80, 2), (40, 3)):
        console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
        console.print(JobsView(jobs))
        assert isinstance(console.file, io.StringIO)
        assert len(console.file.getvalue().splitlines()) == lines
        assert JOBS[3]["id"] in console.file.getvalue()


class LongNames(Service):
    """A service whose jobs and models have long names."""

    def of_models(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"models": [MODEL]} if request.url.path == "/api/models" else MODEL)

    def of_jobs(self, request: httpx.Request) -> httpx.Response:
        if request.url.params.get("dry_run"):
            return httpx.Response(200, json=PLAN)
        if (request.url.path, request.method) == ("/api/jobs", "GET"):
            return httpx.Response(200, json={"jobs": JOBS, "next": None})
        return super().of_jobs(request)


ADAPTER = {
    "adapter": CHINESE, "scale": 1.0, "tensors": 44, "merged": 21, "replaced": 2, "rows_replaced": 0,
    "change_norms": dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "embed_tokens"), 1.23456),
}  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs",),
        ("models",),
        ("models", "show", "ab"),
        ("models", "show", "ab", "--verbose"),
        ("merge", "b", "-a", "a", "-t", "ab", "--dry-run"),
        ("merge", "b", "-a", "a", "-t", "ab", "--verbose"),
    ],
)
def test_tables_in_a_pipe_have_at_most_100_columns(
    monkeypatch: pytest.MonkeyPatch, run: Run, arguments: tuple[str, ...]
) -> None:
    service = LongNames()
    service.result = {
        "model": MODEL, "bytes_read": 1, "bytes_written": 1, "tensors": 1, "adapters": [ADAPTER, ADAPTER],
        "verification": None, "vocabulary_size": 1, "device": "cpu",
    }  # fmt: skip
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(service))
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    table = [line for line in result.stdout.splitlines() if not line.startswith("merged ")]
    assert 40 < max(map(columns, table)) <= 100


def test_without_verbose_a_job_is_one_line_with_its_warnings_and_problems_on_stderr(
    service: Service, run: Run
) -> None:
    service.result = {
        "model": {"name": "ab", "kind": "huggingface", "size_bytes": 1, "problems": ["A file is missing."]},
        "warnings": ["The base is rounded."], "bytes_read": 1, "bytes_written": 1, "tensors": 1,
    }  # fmt: skip
    short = run("convert", "a", "b")
    assert short.stdout == "converted a → b, 1 tensor, 1 byte. Next: graftwerk chat ab\n"
    assert short.stderr.splitlines()[-2:] == ["warning: The base is rounded.", "warning: A file is missing."]
    details = run("convert", "a", "b", "-v").stdout.splitlines()
    assert details[0] == short.stdout.rstrip()
    assert any(line.split() == ["bytes", "read", "1", "byte"] for line in details)


def test_every_help_page_fits_a_pipe() -> None:
    from graftwerk.commands import app
    from typer.testing import CliRunner

    from tests.unit.test_client_docs import COMMANDS

    for name in ("graftwerk", *COMMANDS):
        result = CliRunner().invoke(app, [*name.split()[1:], "--help"], env={"TERMINAL_WIDTH": None})
        assert result.exit_code == 0
        assert widest(result.stdout) <= 100


def test_the_json_of_a_result_is_unchanged_by_verbose(service: Service, run: Run) -> None:
    assert json.loads(run("convert", "a", "b", "--json").stdout) == json.loads(
        run("convert", "a", "b", "--json", "--verbose").stdout
    )
    result: dict[str, Any] = json.loads(run("convert", "a", "b", "--json").stdout)["result"]
    assert result == service.result


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_bars_take_one_line_each(width: int) -> None:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False
    )
    bars = Bars(console)
    for job in JOBS:
        bars.show(Job.model_validate(job))
    console.print(bars.get_renderable())
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == len(JOBS)
    assert max(map(columns, lines)) <= width
