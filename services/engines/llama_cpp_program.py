"""Program that serves one GGUF model with llama.cpp on a socket: `python llama_cpp_program.py OPTIONS`, a JSON object.

It runs in a process of its own, since hostile metadata aborts llama.cpp and loading a model keeps Python's lock. It imports
nothing of this service.
"""

import json
import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

SILENT = -1
"""llama.cpp's verbosity: its lines have prompts in them."""

OOM_SCORE = "800"
"""A system without memory ends this process before the worker, whose other jobs live on."""


def main(options: dict[str, Any]) -> None:
    """Loads the model and answers until the process is ended. `options` is that of `program_options`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (options["memory_bytes"], options["memory_bytes"]))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
    import xllamacpp  # noqa: PLC0415  (after the limits)

    parameters = xllamacpp.CommonParams()
    parameters.model.path = options["model"]
    parameters.hostnames = [options["socket"]]
    parameters.n_parallel = options["slots"]
    parameters.n_ctx = options["slots"] * options["context"]  # divided among the slots
    parameters.n_gpu_layers = options["gpu_layers"]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options["threads"]
    parameters.n_threads_http = 2 * options["slots"] + 16  # each stream takes one, those that wait too
    parameters.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in options["adapters"]
    ]
    parameters.verbosity = SILENT
    parameters.cache_ram_mib = 0  # its store of prompts takes 8 GiB by default, and mixes adapters
    parameters.fit_params = False  # it would shorten the context
    parameters.ctx_shift = False
    parameters.use_jinja = parameters.ui = parameters.endpoint_slots = False
    parameters.enable_chat_template = False  # foreign text; templates are rendered elsewhere
    server = xllamacpp.Server(parameters)
    print(f"llama.cpp is ready on {server.listening_address}.", flush=True)  # noqa: T201
    threading.Event().wait()


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except RuntimeError as error:
        sys.exit(f"llama.cpp does not load the model: {error}")
