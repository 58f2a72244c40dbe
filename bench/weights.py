"""Conversion and merge against cp, PEFT, mergekit and the script of transformers 4.31: time, memory, ETA, a cancellation."""

import argparse
import statistics
from pathlib import Path
from typing import Any

from bench.command import measure_command
from bench.contenders import ADAPTERS, PLAIN_ADAPTER, clear
from bench.peers import command_of, is_there, set_up
from bench.plots import draw_bars

Json = dict[str, Any]
FAST = (
    "cp_source", "graftwerk_convert", "graftwerk_merge_canceled", "graftwerk_merge_plain", "graftwerk_merge", "cp_output",
    "graftwerk_merge_verified",
)  # fmt: skip
SLOW = ("transformers_convert", "peft_merge", "mergekit_merge_plain")
RATIOS = {
    "convert against cp": ("graftwerk_convert", "cp_source"),
    "transformers 4.31 against convert": ("transformers_convert", "graftwerk_convert"),
    "merge against cp of its output": ("graftwerk_merge", "cp_output"),
    "PEFT against merge": ("peft_merge", "graftwerk_merge"),
    "mergekit against merge, one adapter": ("mergekit_merge_plain", "graftwerk_merge_plain"),
    "verified against not": ("graftwerk_merge_verified", "graftwerk_merge"),
}
NEEDED = ("graftwerk_convert", "graftwerk_merge_plain", "graftwerk_merge", "graftwerk_merge_verified")
"""Outputs that other contenders read or copy; the others are removed at once to save disk space."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16], help="3.8 GB a model of 8")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="leave out PEFT, mergekit and transformers")
    parser.add_argument("--only", nargs="+", choices=FAST, default=FAST, help="measure these of our own")
    parser.add_argument("--setup-peers", action="store_true", help="build what the peers need, with pip")


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures everything; there are no limits to violate."""
    environments: Path = options.folder / "peers"
    if options.setup_peers:
        set_up(environments)
    report: Json = {"runs": options.runs}
    for layers in options.layers:
        folder: Path = options.folder / f"{layers}-layers"
        prepare(folder, layers)
        results = run(folder, environments, options)
        report[f"{layers} layers"] = summary(results)
        for name in NEEDED:
            clear(folder, name)
    _draw(options.plots, report, options.layers)
    return report, []


def prepare(folder: Path, layers: int) -> None:
    """Writes the fixtures if they are missing."""
    if (folder / ".ready").exists():
        return
    from bench.fixtures import RANKS_AND_ROWS, make_adapter, make_original

    make_original(folder / "original", layers)
    for name, (rank, rows) in RANKS_AND_ROWS.items():
        make_adapter(folder / name, layers, rank, rows)
    assert set(RANKS_AND_ROWS) == {*ADAPTERS, PLAIN_ADAPTER}
    (folder / ".ready").touch()


def run(folder: Path, environments: Path, options: argparse.Namespace) -> dict[str, list[Json]]:
    """Runs the contenders in turn, the fast ones `runs` times, the slow ones once."""
    results: dict[str, list[Json]] = {}
    fast = [name for name in FAST if name in options.only]
    for number in range(options.runs):
        for name in (*fast, *(SLOW if number == 0 and not options.no_peers else ())):
            if not is_there(name, environments):
                print(f"{name:26} left out: --setup-peers builds what it needs", flush=True)
                continue
            found = measure(name, folder, environments)
            results.setdefault(name, []).append(found)
            if name not in NEEDED:
                clear(folder, name)
            print(
                f"{name:26} {found['seconds']:7.1f} s  {found['anonymous_mb']:6.0f} MB anonymous", flush=True
            )
    return results


def measure(name: str, folder: Path, environments: Path) -> Json:
    """Returns time and memory of one run of a contender."""
    clear(folder, name)
    command = command_of(name, folder, environments)
    return measure_command(command, prints_json=command[0] != "cp")


def summary(results: dict[str, list[Json]]) -> Json:
    """Returns medians, and the ratios of seconds."""
    medians = {
        name: {key: round(_median(found, key), 3) for key in found[0] if key != "eta"}
        for name, found in results.items()
    }
    ratios = {
        key: {
            title: round(medians[one][key] / medians[other][key], 2)
            for title, (one, other) in RATIOS.items()
            if one in medians and other in medians
        }
        for key in ("work_seconds", "processor_seconds")
    }
    return {"medians": medians, "ratios": ratios, "eta": results["graftwerk_merge_verified"][-1]["eta"]}


def _median(found: list[Json], key: str) -> float:
    return statistics.median(entry[key] for entry in found)


def _draw(folder: Path, report: Json, layers: list[int]) -> None:
    for key, title, unit in (
        ("work_seconds", "seconds, median", "s"),
        ("anonymous_mb", "peak anonymous memory", "MB"),
    ):
        bars, groups = {}, {}
        for count in layers:
            for name, medians in report[f"{count} layers"]["medians"].items():
                if name != "graftwerk_merge_canceled":
                    label = f"{name.replace('_', ' ')}, {count}"
                    bars[label], groups[label] = medians[key], int(not name.startswith("graftwerk"))
        file = folder / f"weights-{key.replace('_', '-')}.svg"
        draw_bars(file, f"Layers of LLaMA-7B's width: {title}", bars, unit=unit, groups=groups)
