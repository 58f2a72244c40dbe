"""`python -m bench weights|quantization|generate|gguf|batching|decoding|adapters|structured|sharing|uploads|records|vllm`: each measures within one run and prints JSON."""

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path
from types import ModuleType

from bench import (
    adapters,
    batching,
    decoding,
    generate,
    gguf,
    quantization,
    records,
    sharing,
    structured,
    uploads,
    vllm_speed,
    weights,
)

SUBJECTS: dict[str, ModuleType] = {
    "weights": weights,
    "quantization": quantization,
    "generate": generate,
    "gguf": gguf,
    "batching": batching,
    "decoding": decoding,
    "adapters": adapters,
    "structured": structured,
    "sharing": sharing,
    "uploads": uploads,
    "vllm": vllm_speed,
    "records": records,
}


def machine() -> dict[str, object]:
    """Returns date, processor, cores and load of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": date.today().isoformat(), "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(), "load_before": [round(load, 2) for load in os.getloadavg()],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("var/bench"), help="for what is made and measured"
    )
    parser.add_argument("--plots", type=Path, default=Path("docs/benchmarks"), help="for the SVG files")
    commands = parser.add_subparsers(dest="subject", required=True)
    for name, module in SUBJECTS.items():
        summary = str(module.__doc__).splitlines()[0]
        module.add_options(commands.add_parser(name, help=summary, description=summary))
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.plots.mkdir(parents=True, exist_ok=True)
    before = machine()
    report, violations = SUBJECTS[options.subject].measure_all(options)
    report = {"subject": options.subject, **before, **report, "violations": violations}
    text = json.dumps(report, indent=1)
    (options.folder / f"{options.subject}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    if violations:
        raise SystemExit("violated: " + "; ".join(violations))


if __name__ == "__main__":
    main()
