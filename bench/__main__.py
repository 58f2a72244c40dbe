"""Measures converting and merging against `cp`, PEFT and the script of transformers 4.31, in turn, and prints medians."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import psutil

from bench.contenders import CONTENDERS, clear
from bench.fixtures import ADAPTERS, make_adapter, make_original

SAMPLE_SECONDS = 0.02
FAST = ("cp_source", "graftwerk_convert", "graftwerk_merge", "cp_output", "graftwerk_merge_verified")
SLOW = ("transformers_convert", "peft_merge")


def measure(name: str, folder: Path) -> dict[str, float]:
    """Wall seconds of one run, and the peaks of anonymous and of all resident memory over its processes, in MB."""
    clear(folder, name)
    os.sync()
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "bench.contenders", name, str(folder)])
    anonymous = resident = 0
    while process.poll() is None:
        sample = _memory(process.pid)
        anonymous, resident = max(anonymous, sample[0]), max(resident, sample[1])
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}")
    return {
        "seconds": time.monotonic() - start,
        "anonymous_mb": anonymous / 2**20,
        "resident_mb": resident / 2**20,
    }


def _memory(pid: int) -> tuple[int, int]:
    try:
        root = psutil.Process(pid)
        infos = [process.memory_info() for process in (root, *root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0, 0
    return sum(info.rss - info.shared for info in infos), sum(info.rss for info in infos)


def prepare(folder: Path, layers: int) -> None:
    """Make the fixtures where they are missing."""
    if not (folder / "original").is_dir():
        make_original(folder / "original", layers)
        for name, (rank, rows) in ADAPTERS.items():
            make_adapter(folder / name, layers, rank, rows)


def run(folder: Path, runs: int, peers: bool) -> dict[str, list[dict[str, float]]]:
    """All contenders in turn, `runs` times the fast ones, once the slow ones."""
    results: dict[str, list[dict[str, float]]] = {}
    for number in range(runs):
        for name in (*FAST, *(SLOW if peers and number == 0 else ())):
            if name == "transformers_convert" and not (folder / "transformers-4.31").is_dir():
                continue
            figures = measure(name, folder)
            results.setdefault(name, []).append(figures)
            print(
                f"{name:26} {figures['seconds']:7.1f} s  {figures['anonymous_mb']:6.0f} MB anonymous",
                flush=True,
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="leave out PEFT and transformers")
    options = parser.parse_args()
    folder = (options.folder / f"{options.layers}-layers").resolve()
    prepare(folder, options.layers)
    results = run(folder, options.runs, not options.no_peers)
    medians = {
        name: {key: round(statistics.median(run[key] for run in figures), 2) for key in figures[0]}
        for name, figures in results.items()
    }
    report = {
        "date": date.today().isoformat(), "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(), "layers": options.layers, "runs": options.runs, "medians": medians,
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    assert set(medians) <= set(CONTENDERS)


if __name__ == "__main__":
    main()
