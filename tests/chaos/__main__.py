"""`python -m tests.chaos`: a seeded run of faults under load; exit status 1 if anything is not accounted for."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from tests.chaos.containers import ContainerSystem
from tests.chaos.driver import Outcome, Run
from tests.chaos.faults import FAULT_OF_NAME
from tests.chaos.plan import make_plan
from tests.chaos.processes import ENGINE_SETTINGS, ProcessSystem
from tests.chaos.report import markdown, write_section
from tests.chaos.system import System
from tests.chaos.volume import Volume

LEAST_WAIT_SECONDS = 10.0


def main() -> int:
    """Runs and prints; returns the exit status."""
    options = _options()
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"chaos {time.monotonic() - started:6.1f} s: {line}", flush=True)  # noqa: T201

    plan = make_plan(options.seed, options.minutes, options.jobs, options.engine, options.fault)
    target = "chaos-compose" if options.compose else "chaos"
    command = f"make {target} SEED={options.seed} MINUTES={options.minutes:g} JOBS={options.jobs} ENGINE={options.engine}"
    say(f"{len(plan.all_jobs)} jobs and {len(plan.faults)} faults; to repeat it: {command}")
    folder = Path(tempfile.mkdtemp(prefix="graftwerk-chaos-"))
    with _system(folder, options) as system:
        with system.running():
            say(f"The service is ready at {system.url}, its files are in {folder}.")
            outcome = Run(plan, system, say).run()
        left = [f"a process is left: {process}" for process in system.processes()]
        left += [f"a temporary file is left: {name}" for name in system.left_files()]
    outcome.account.problems.extend(left)
    return _finish(outcome, command, options, folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of jobs and faults")
    parser.add_argument("--minutes", type=float, default=10, help="length of the load")
    parser.add_argument("--jobs", type=int, default=300, help="number of jobs")
    parser.add_argument("--page", type=Path, help="page whose tables are replaced")
    parser.add_argument("--plain-volume", action="store_true", help="mount nothing: no faults of the disk")
    parser.add_argument("--engine", choices=ENGINE_SETTINGS, default="auto", help="vllm: a stand-in for it")
    parser.add_argument(
        "--fault", type=_fault, action="append", default=[], help="NAME/ROLE: only these, in this order"
    )
    parser.add_argument("--compose", action="store_true", help="containers instead of processes")
    return parser.parse_args()


def _fault(text: str) -> tuple[str, str]:
    name, _, role = text.rpartition("/")
    if role not in FAULT_OF_NAME[name].roles:
        raise ValueError(text)
    return name, role


@contextmanager
def _system(folder: Path, options: argparse.Namespace) -> Iterator[System]:
    volume = Volume(folder, is_mounted=not options.plain_volume)
    try:
        yield (
            ContainerSystem(volume)
            if options.compose
            else ProcessSystem(folder, volume, engine=options.engine)
        )
    finally:
        volume.close()


def _finish(outcome: Outcome, command: str, options: argparse.Namespace, folder: Path) -> int:
    heading = f"{date.today().isoformat()}, seed {options.seed}: {len(outcome.plan.all_jobs)} jobs in {outcome.seconds / 60:.1f} minutes."
    text = markdown(outcome, command, heading)
    print(f"\n{text}")  # noqa: T201
    if options.page is not None:
        write_section(options.page, text)
    if outcome.account.problems:
        listed = "\n".join(f"- {problem}" for problem in outcome.account.problems)
        print(f"FAILED:\n{listed}\nLogs: {folder}/logs. To repeat it: {command}", file=sys.stderr)  # noqa: T201
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
