"""vLLM as an engine: the command line and the environment of its server."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.adapters.vllm_adapter import LAYERS
from services.generate_engines import ADAPTER_RANK, ADAPTER_RANKS
from services.sampling import MAX_LOGPROBS

MODEL = "model"
"""Name of the base in requests to its server."""

ENVIRONMENT: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Nothing is sent or fetched; adapters are loaded and unloaded while the server runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """Options of vLLM's servers.

    Attributes:
        command: Command that starts a server, as in a shell; arguments are appended.
        slots: Largest number of sequences in one batch.
        dtype: dtype of the computation, or "auto" for the model's own.
        context: Largest number of tokens of a prompt and its output; 0 is the model's own.
        cache_bytes: Memory of the KV cache on each device; 0 leaves it to vLLM.
        tensor_parallel: Number of GPUs that share each layer.
        adapter_rank: Largest rank of an adapter that is not merged.
        start_seconds: Longest time until a server is ready.
    """

    command: str = "vllm serve"
    slots: int = 8
    dtype: str = "auto"
    context: int = 0
    cache_bytes: int = 0
    tensor_parallel: int = 1
    adapter_rank: int = ADAPTER_RANK
    start_seconds: float = 1800.0

    @property
    def program(self) -> str:
        """The program of the command."""
        return shlex.split(self.command)[0]


def server_command(options: VllmOptions, folder: Path, socket: Path) -> list[str]:
    """Returns the command of a server that has the model of a folder and listens on a socket.

    Settings of a `generation_config.json` are not read: those of a request are complete. llguidance enforces grammars, as it
    does in the reference engine. With adapters of the head vLLM 0.32 fails on requests that score their prompts.
    """
    arguments = {
        "model": str(folder),
        "served-model-name": MODEL,
        "uds": str(socket),
        "dtype": options.dtype,
        "max-num-seqs": str(options.slots),
        "tensor-parallel-size": str(options.tensor_parallel),
        "max-loras": str(options.slots),
        "max-lora-rank": str(_allowed_rank(options.adapter_rank)),
        "max-logprobs": str(MAX_LOGPROBS),
        "generation-config": "vllm",
        "structured-outputs-config": json.dumps({"backend": "guidance"}),
    }
    if options.context:
        arguments["max-model-len"] = str(options.context)
    if options.cache_bytes:
        arguments["kv-cache-memory-bytes"] = str(options.cache_bytes)
    named = [f"--{name}={value}" for name, value in arguments.items()]
    flags = ["--enable-lora", "--disable-uvicorn-access-log", "--lora-target-modules", *sorted(LAYERS)]
    return [*shlex.split(options.command), *named, *flags]


def _allowed_rank(rank: int) -> int:
    return next((allowed for allowed in ADAPTER_RANKS if allowed >= rank), ADAPTER_RANKS[-1])
