"""Engines that generate text: one table of the engine that answers each kind of model, by the service's setting."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which
from typing import Any, Literal

GenerateEngine = Literal["auto", "graftwerk", "llama.cpp", "vllm"]
"""Values of the setting `GENERATE_ENGINE`."""

Engine = Literal["graftwerk", "llama.cpp", "vllm", "remote"]
"""Name of what computes: the reference engine, llama.cpp, vLLM, or the server of `GENERATE_BACKEND_URL`."""

ENGINES: Mapping[str, Mapping[GenerateEngine, Engine]] = {
    "huggingface": {"auto": "graftwerk", "graftwerk": "graftwerk", "llama.cpp": "graftwerk", "vllm": "vllm"},
    "gguf": {"auto": "llama.cpp", "llama.cpp": "llama.cpp"},
}
"""Engine by the kind of a model and the setting; models without an entry are converted first."""

PACKAGES: Mapping[Engine, str] = {"graftwerk": "torch", "llama.cpp": "xllamacpp"}
"""Engines within a worker, and the package without which it does not have one."""

PROGRAMS: Mapping[Engine, str] = {"vllm": "vllm"}
"""Engines that are programs of their own, by the name that they have unless a setting says otherwise."""

ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank`."""

ADAPTER_RANK = 64
"""Largest rank of an adapter that vLLM applies unmerged, where no setting names another."""


@dataclass(frozen=True, slots=True)
class GgufLimits:
    """Limits of each GGUF model in llama.cpp: outputs at once, and the longest context of each in tokens."""

    slots: int = 8
    context: int = 8192


DEFAULT_LIMITS = GgufLimits()
"""Limits where no setting names others."""


@dataclass(frozen=True, slots=True)
class Engines:
    """Engines of a service: its setting, those that its workers have, and limits of what they run.

    `adapter_rank` is the largest rank of an adapter that vLLM applies unmerged; `vllm_cache_bytes` are the bytes of keys and
    values of each of its servers, 0 if it takes what the model leaves.
    """

    setting: GenerateEngine = "auto"
    available: frozenset[str] = frozenset({*PACKAGES, *PROGRAMS})
    gguf: GgufLimits = DEFAULT_LIMITS
    adapter_rank: int = ADAPTER_RANK
    vllm_cache_bytes: int = 0

    @classmethod
    def installed(
        cls,
        setting: GenerateEngine,
        programs: Mapping[Engine, str] = PROGRAMS,
        adapter_rank: int = ADAPTER_RANK,
        vllm_cache_bytes: int = 0,
    ) -> "Engines":
        """Returns the engines whose packages or programs this process has."""
        inside = {name for name, package in PACKAGES.items() if find_spec(package)}
        found = frozenset(inside | {name for name, program in programs.items() if which(program)})
        return cls(setting, found, adapter_rank=adapter_rank, vllm_cache_bytes=vllm_cache_bytes)

    @property
    def is_complete(self) -> bool:
        """True if the engine that the setting names is available."""
        return self.setting == "auto" or self.setting in self.available

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as JSON, for `from_json`."""
        return {
            "setting": self.setting, "available": sorted(self.available), "gguf": [self.gguf.slots, self.gguf.context],
            "adapter_rank": self.adapter_rank, "vllm_cache_bytes": self.vllm_cache_bytes,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Engines":
        """Returns the engines of what `as_json` has returned."""
        limits = GgufLimits(*value["gguf"])
        numbers = (value["adapter_rank"], value["vllm_cache_bytes"])
        return cls(value["setting"], frozenset(value["available"]), limits, *numbers)

    def of(self, model_kind: str) -> Engine | None:
        """Returns the engine that answers models of a kind, None if none does."""
        engine = ENGINES.get(model_kind, {}).get(self.setting)
        return engine if engine in self.available else None


ALL_ENGINES = Engines()
"""Engines of a service whose workers are not known yet."""
