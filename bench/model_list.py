"""Time of the list of 1,000 models, read for the first time and kept: `python -m bench.model_list`."""

import tempfile
import time
from pathlib import Path

import psutil
from fakeredis import FakeRedis, FakeServer

from services.jobs.model_records import ModelRecords
from services.models.store import ModelStore
from services.preflight.isolated import header_processes
from services.preflight.model_reader import ModelReader
from tests.hostile_files import HOSTILE
from tests.reference.tensor_files import write_adapter, write_base

MODELS = 1000
HOSTILE_MODELS = ("patterns: 100,000 expressions", "tokenizer.model: 32 MiB of fields", "pipe: model.gguf")


def main() -> None:
    """Lists 1,000 small models, half of them adapters, then three hostile ones among them."""
    with tempfile.TemporaryDirectory() as root:
        volume = Path(root)
        for number in range(MODELS // 2):
            write_base(volume / f"base-{number}", pieces=101)
            write_adapter(volume / f"adapter-{number}")
        records = ModelRecords(FakeRedis(server=FakeServer()))
        reader = ModelReader(ModelStore(volume), records, header_processes())
        for what in ("for the first time", "again"):
            _measure(f"{MODELS} models {what}", reader)
        for number, name in enumerate(HOSTILE_MODELS):
            folder = volume / f"hostile-{number}"
            folder.mkdir()
            HOSTILE[name][0](folder)
        for what in ("with three new hostile ones", "again"):
            _measure(f"{MODELS} models {what}", reader)
        header_processes().stop()


def _measure(what: str, reader: ModelReader) -> None:
    began, spent = time.perf_counter(), _processor_seconds()
    problems = sum(bool(model.problems) for model in reader.models())
    seconds, spent = time.perf_counter() - began, _processor_seconds() - spent
    memory = max((child.memory_info().rss for child in psutil.Process().children()), default=0)
    print(
        f"{what}: {spent:.2f} s of the processor, {seconds:.2f} s of the clock, {problems} with a problem; the reading process has "
        f"{memory >> 20} MiB"
    )


def _processor_seconds() -> float:
    """Returns the time of this process and of the reading process, also of those that have ended."""
    own = psutil.Process()
    times = own.cpu_times()
    children = [child.cpu_times() for child in own.children()]
    return sum((times.user, times.system, times.children_user, times.children_system)) + sum(
        child.user + child.system for child in children
    )


if __name__ == "__main__":
    main()
