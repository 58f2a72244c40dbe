"""Identity of loaded models: the files of their folders, and how they are loaded."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from services.generate_engines import Engine as EngineName
from services.kinds.generate import GenerateRequest
from services.kinds.shared import ModelChoice, Quantization
from services.models.store import ModelStore

Stamp = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and modification time in ns of each file of a folder."""


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Identity of a loaded model: requests with equal keys share it. The files of the same folders, loaded the same way.

    Its `repr` is part of the identity of outputs in files. `unmerged` adapters are applied next to the base's weights, if they can be.
    """

    model: str
    stamp: Stamp
    adapters: tuple[tuple[str, float, Stamp], ...]
    quantization: Quantization | None
    rope_alpha: float | None
    engine: EngineName = field(default="graftwerk", repr=False)
    unmerged: bool = field(default=False, repr=False)

    @property
    def is_stack(self) -> bool:
        """True if the reference engine applies the adapters to the loaded base."""
        return self.unmerged and self.engine == "graftwerk"

    @property
    def base(self) -> "ModelKey":
        """Key of the model without adapters."""
        return replace(self, adapters=(), unmerged=False)

    @property
    def files(self) -> tuple[tuple[str, Stamp], ...]:
        """Names and files of the adapters, whose scales do not count."""
        return tuple((name, stamp) for name, _, stamp in self.adapters)

    @property
    def name(self) -> str:
        """The model's name and those of its adapters, `base+adapter`."""
        return "+".join([self.model, *(name for name, _, _ in self.adapters)])


def key_of(choice: ModelChoice, store: ModelStore, engine: EngineName = "graftwerk") -> ModelKey:
    """Returns the key of the model that a request or a variant names, on an engine.

    Raises:
        ModelNotFound: a folder does not exist.
    """
    adapters = tuple(
        (adapter.name, adapter.scale, folder_stamp(store.path(adapter.name))) for adapter in choice.adapters
    )
    stamp = folder_stamp(store.path(choice.model))
    unmerged = isinstance(choice, GenerateRequest) and choice.applies_unmerged
    return ModelKey(choice.model, stamp, adapters, choice.quantization, choice.rope_alpha, engine, unmerged)


def folder_stamp(folder: Path) -> Stamp:
    """Returns the state of a folder's files."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
