"""Process that reads folders, each in a child of its own, and prints what that took: for tests of hostile files.

Lines in: a function's name and a path. Lines out: a JSON object with `answer`, `seconds` of the processor and `bytes` of memory.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.errors import GraftwerkError
from services.files.safetensors_header import read_safetensors_header
from services.files.torch_zip import read_torch_header
from services.models.manifest import Manifest, read_manifest
from services.models.summary import describe_folder

SECONDS_LIMIT = 30
MEMORY_LIMIT_BYTES = 2 * 2**30


def _manifest(folder: Path) -> Manifest:
    found = read_manifest(folder)
    assert found is not None
    return found


READERS: dict[str, Callable[[Path], Any]] = {
    "summary": lambda folder: describe_folder(folder, folder.name).model_dump(mode="json"),
    "safetensors": lambda folder: len(read_safetensors_header(folder / "a.safetensors")),
    "manifest": lambda folder: len(_manifest(folder).tensors),
    "torch": lambda folder: len(read_torch_header(folder / "a.bin")),
}


def _answer(reader: str, folder: Path) -> Any:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS_LIMIT, SECONDS_LIMIT))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    try:
        return READERS[reader](folder)
    except GraftwerkError as error:
        return error.code


def main() -> None:
    """Reads one folder after another."""
    for line in sys.stdin:
        reader, folder = line.rstrip("\n").split(" ", 1)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.write(write, json.dumps(_answer(reader, Path(folder))).encode())
            os._exit(0)
        os.close(write)
        with open(read, "rb") as answer:  # noqa: PTH123
            found = answer.read()
        _, status, used = os.wait4(child, 0)
        result = {"answer": json.loads(found) if found else f"died with status {status}",
                  "seconds": used.ru_utime + used.ru_stime, "bytes": used.ru_maxrss * 1024}  # fmt: skip
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
