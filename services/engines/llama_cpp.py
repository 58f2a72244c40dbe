"""llama.cpp as an engine: the command of the process that serves a GGUF model."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(__file__).with_name("llama_cpp_program.py")

ALL_LAYERS = -1
"""Value of `gpu_layers` for a GPU; a build of llama.cpp without one ignores it."""

MEMORY_SLACK_BYTES = 2 * 2**30
"""Memory that a process may take beyond its estimate: threads, and weights that are stored in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppOptions:
    """Options of a process with one model.

    Attributes:
        model: The model's first file.
        adapters: Files of adapters with the factors on their changes; all of them are always applied.
        slots: Largest number of outputs at once.
        context: Largest number of tokens of a prompt and its output.
        threads: Threads of the computation.
        gpu_layers: Layers on a GPU, 0 or `ALL_LAYERS`.
        memory_bytes: Estimate of the process's memory.
        start_seconds: Longest time until it takes requests.
    """

    model: Path
    adapters: tuple[tuple[Path, float], ...] = ()
    slots: int = 8
    context: int
    threads: int
    gpu_layers: int = 0
    memory_bytes: int
    start_seconds: float = 600.0


def program_command(options: LlamaCppOptions, socket: Path) -> list[str]:
    """Returns the command of a process that listens on a socket."""
    values = {
        "model": str(options.model),
        "adapters": [(str(path), scale) for path, scale in options.adapters],
        "socket": str(socket),
        "slots": options.slots,
        "context": options.context,
        "threads": options.threads,
        "gpu_layers": options.gpu_layers,
        "memory_bytes": options.memory_bytes + MEMORY_SLACK_BYTES,
    }
    return [sys.executable, "-P", str(PROGRAM), json.dumps(values)]
