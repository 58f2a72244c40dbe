"""Generation through the whole service on the CPU: crowds, first text, a cancellation, a killed worker, a soak test."""

import argparse
from pathlib import Path
from typing import Any

from bench import crowd, first_text, interruptions, soak
from bench.job_requests import mixed
from bench.plots import draw_bars
from bench.service import MODEL, Service, running
from bench.sharing import MINIATURE, bring_miniature
from bench.small_model import make_small_model, parameters

Json = dict[str, Any]

MOST_ADDED_SECONDS = {"first_text": 0.06, "first_text_of_miniature": 0.03}
"""Longest time that a job may add to the engine's own until its first text."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--slots", type=int, nargs="*", default=[8, 16], help="GENERATE_SLOTS to measure")
    parser.add_argument("--threads", type=int, default=1, help="TORCH_THREADS of the worker")
    parser.add_argument("--jobs", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--times", type=int, default=20, help="turns of first text")
    parser.add_argument("--new-tokens", type=int, default=200, help="of jobs that are interrupted")
    parser.add_argument("--soak", type=int, default=2000, help="requests; 0 leaves it out")


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures everything; returns the report and the violations."""
    folder: Path = options.folder / "generate"
    make_small_model(folder / "models" / MODEL)
    violations: list[str] = []
    report: Json = {
        "parameters": parameters(folder / "models" / MODEL),
        "torch_threads": options.threads, "dtype": "float32", "runs": options.runs, "crowd": {},
    }  # fmt: skip
    for slots in options.slots:
        with running(folder, slots=slots, threads=options.threads) as service:
            found, wrong = crowd.compare(service, mixed(options.jobs), options.runs)
            report["crowd"][f"{slots} slots"] = _told(found)
            violations += [f"{slots} slots: {text}" for text in wrong]
    with running(folder, slots=8, threads=options.threads) as service:
        report |= _first_texts(service, options)
        violations += [
            f"{name}: a job adds {report[name]['service_adds_to_job']} s, at most {limit} s"
            for name, limit in MOST_ADDED_SECONDS.items()
            if report[name]["service_adds_to_job"] > limit
        ]
        for name, scene in (("cancel", interruptions.cancel_one), ("kill", interruptions.kill_worker)):
            report[name], wrong = scene(service, options.new_tokens)
            violations += wrong
            _told(report[name])
        if options.soak:
            report["soak"], wrong = soak.soak(service, options.soak)
            violations += wrong
    if options.soak:
        with running(
            folder, slots=8, threads=options.threads, retention_seconds=soak.RETENTION_SECONDS
        ) as service:
            report["expiry"], wrong = soak.expire(service)
            violations += wrong
    _draw(options.plots, report)
    return report, violations


def _first_texts(service: Service, options: argparse.Namespace) -> Json:
    bring_miniature(service)
    return {
        name: _told(first_text.compare(service, options.threads, options.times, model))
        for name, model in (("first_text", MODEL), ("first_text_of_miniature", MINIATURE))
    }


def _told(found: Json) -> Json:
    print(found, flush=True)
    return found


def _draw(folder: Path, report: Json) -> None:
    for key, title, unit in (
        ("tokens_per_second", "Tokens per second of all jobs, median", "tokens/s"),
        ("mean_latency", "Mean seconds until an answer is complete, all wanted at once", "s"),
    ):
        bars, groups = {}, {}
        for slots, found in report["crowd"].items():
            for number, way in enumerate(("one_after_another", "together")):
                label = f"{way.replace('_', ' ')}, {slots}"
                bars[label], groups[label] = found[way][key], number
        draw_bars(folder / f"generate-{key.replace('_', '-')}.svg", title, bars, unit=unit, groups=groups)
    seconds = {name: value * 1000 for name, value in report["first_text"]["seconds"].items()}
    groups = {name: int("engine" not in name) for name in seconds}
    title = "Milliseconds to the first text, median"
    draw_bars(folder / "generate-first-text.svg", title, seconds, unit="ms", groups=groups)
