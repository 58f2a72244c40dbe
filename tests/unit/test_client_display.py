"""Progress, results and tables on the console."""

import io

import pytest
from graftwerk.display import print_text
from graftwerk.lists import JobsView
from graftwerk.models import Job
from graftwerk.progress_display import Bars, progress_view
from graftwerk.tables import RowsView, facts_view
from rich.console import Console

PROGRESS = {
    "stage": "writing tensors",
    "done": 1_000_000_000,
    "total": 4_000_000_000,
    "unit": "bytes",
    "fraction": 0.25,
    "eta_seconds": 101.4,
}


def console_of(*, terminal: bool) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=160, color_system=None, legacy_windows=False
    )


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def job(status: str, **more: object) -> Job:
    return Job.model_validate(
        {"id": "j1", "kind": "merge", "status": status, "request": {"target": "ab"}, **more}
    )


def test_a_bar_shows_stage_amount_and_time_left() -> None:
    console = console_of(terminal=True)
    with progress_view(console) as view:
        assert isinstance(view, Bars)
        view.show(job("running", progress=PROGRESS))
        view.refresh()
        text = printed(console)
        view.show(job("succeeded"))
    assert "merge → ab" in text
    assert "writing tensors" in text
    assert "1.0 GB of 4.0 GB" in text
    assert "1:41 left" in text
    assert "done" in printed(console)


def test_a_stage_of_unknown_length_shows_no_share() -> None:
    console = console_of(terminal=True)
    with progress_view(console) as view:
        view.show(
            job(
                "running",
                progress=PROGRESS | {"total": 0, "done": 0, "eta_seconds": None, "stage": "loading"},
            )
        )
    assert "loading" in printed(console)
    assert " of " not in printed(console)


def test_a_log_gets_one_line_a_change() -> None:
    console = console_of(terminal=False)
    with progress_view(console) as view:
        for state in (
            job("queued"),
            job("running", progress=PROGRESS),
            job("running", progress=PROGRESS | {"done": 9}),
        ):
            view.show(state)
        view.show(job("succeeded"))
    assert printed(console).splitlines() == [
        "merge → ab  queued",
        "merge → ab  running: writing tensors",
        "merge → ab  succeeded",
    ]


def test_facts_show_sizes_readably_and_leave_out_what_is_empty() -> None:
    console = console_of(terminal=False)
    console.print(
        facts_view(
            {"size_bytes": 1_234_567, "parameters": 6738415616, "ok": True, "note": None, "dims": [1, 2]}
        )
    )
    rows = [line.split(maxsplit=1) for line in printed(console).splitlines()]
    assert [[word.strip() for word in row] for row in rows] == [
        ["size", "1.2 MB"],
        ["parameters", "6,738,415,616"],
        ["ok", "yes"],
        ["dims", "1, 2"],
    ]


def test_an_object_in_a_table_is_its_names_and_values() -> None:
    console = console_of(terminal=False)
    console.print(RowsView([{"adapter": "zh", "change_norms": {"q_proj": 1.23456789, "lm_head": 20.5}}]))
    assert printed(console).splitlines()[1].strip().split(maxsplit=1) == [
        "zh",
        "q_proj 1.23457, lm_head 20.5",
    ]


def test_markup_in_values_is_text() -> None:
    console = console_of(terminal=False)
    console.print(facts_view({"message": "[red]x[/nothing]"}))
    console.print(RowsView([{"name": "[bold]a"}]))
    console.print(JobsView([job("failed", request={"target": "[/]"}, error={"code": "c", "message": "m"})]))
    assert "[red]x[/nothing]" in printed(console)
    assert "[bold]a" in printed(console)
    assert "merge → [/]" in printed(console)


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a␛[31mb\n"), (False, "a\x1b[31mb\n")])
def test_a_models_text_cannot_steer_a_terminal_and_is_unchanged_in_a_pipe(terminal: bool, shown: str) -> None:
    console = console_of(terminal=terminal)
    print_text(console, "a\x1b[31mb")
    assert printed(console) == shown


@pytest.mark.parametrize(
    ("kind", "request_", "title"),
    [
        ("merge", {"target": "ab"}, "merge → ab"),
        ("generate", {"model": "ab"}, "generate with ab"),
        ("embed", {"model": "ab"}, "embed with ab"),
        ("compare", {"variants": [{"model": "a"}, {"model": "b"}]}, "compare 2 models"),
    ],
)
def test_a_job_is_titled_by_what_it_is_about(kind: str, request_: dict[str, object], title: str) -> None:
    assert job("queued", kind=kind, request=request_).title == title


def test_a_job_that_succeeded_is_at_100_percent_and_a_failed_one_keeps_its_extent() -> None:
    console = console_of(terminal=True)
    bars = Bars(console)
    for status in ("succeeded", "failed", "canceled"):
        bars.show(job(status, id=status, progress=PROGRESS))
    bars.show(job("canceled", id="never started"))
    assert [(task.percentage, task.finished) for task in bars.tasks] == [
        (100, True),
        (25, False),
        (25, False),
        (0, False),
    ]
    console.print(bars.get_renderable())
    assert "done 100%" in printed(console)
    assert " left" not in printed(console)


def test_a_transfer_shows_a_time_left_that_it_computes_from_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    console = console_of(terminal=True)
    bars = Bars(console)
    bars.get_time = lambda: float(next(clock))
    upload = {"stage": "uploading", "total": 100_000_000, "unit": "bytes"}
    for done in (1_000_000, 2_000_000, 3_000_000):
        bars.show(job("running", progress={**upload, "done": done}))
    bars.refresh()
    console.print(bars.get_renderable())
    assert "3.0 MB of 100.0 MB" in printed(console)
    assert "/s" in printed(console)
    assert " left" in printed(console)


def test_jobs_that_have_ended_leave_a_terminal_that_is_full() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=10, color_system=None)
    bars = Bars(console)
    for number in range(20):
        bars.show(job("running", id=str(number), progress=PROGRESS))
    for number in range(20):
        bars.show(job("succeeded", id=str(number)))
    assert len(bars.tasks) == 6
