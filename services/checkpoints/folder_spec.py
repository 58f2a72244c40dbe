"""Specification of a model folder before it is written, and the account of it afterwards."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.architectures.output_spec import OutputSpec
from services.checkpoints.importance import ImportanceMatrix
from services.checkpoints.write_ledger import TensorPlan
from services.files.gguf_origin import GgufOrigin
from services.kinds.made_model import ResumedWork

MAX_SHARD_BYTES = 5 * 10**9
"""Default of transformers 4's save_pretrained ("5GB", decimal)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSpec:
    """Everything about a model folder except the values of its tensors.

    Attributes:
        output: Format, configuration, and the dtype and shape of each tensor.
        base_folder: Folder of the base or source; its generation settings and, if the tokenizer has none, its chat template are
            passed on.
        tokenizer_folder: Folder that the tokenizer's files are copied from.
        max_shard_bytes: Largest size of a shard in Hugging Face's layout.
        template: Name of a prompt template (services/templates) for GGUF's metadata and Modelfile.
        origin: Name, licence and base models for GGUF's metadata.
        importance: Importance matrix of a GGUF output.
        identity: Digest of the work, by which a journal is recognized (services/checkpoints/journal.py).
    """

    output: OutputSpec
    base_folder: Path
    tokenizer_folder: Path
    max_shard_bytes: int = MAX_SHARD_BYTES
    template: str | None = None
    origin: GgufOrigin | None = None
    importance: ImportanceMatrix | None = None
    identity: str = ""

    @property
    def plans(self) -> list[TensorPlan]:
        """The tensors as they are computed, under Hugging Face's names."""
        return [TensorPlan(name, dtype, shape) for name, (dtype, shape) in self.output.tensors.items()]

    def computed_bytes(self, names: Collection[str]) -> int:
        """Returns the bytes of some tensors as they are computed."""
        return sum(plan.size_bytes for plan in self.plans if plan.name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenModel:
    """Account of a written model folder.

    Attributes:
        plans: All tensors as they are stored.
        digests: SHA-256 of each tensor's bytes, by its name in `plans`.
        size_bytes: Bytes of all tensors as they are stored.
        reused: Tensors (under Hugging Face's names) that a killed run had already written.
        reused_bytes: Bytes of the reused tensors as they are computed.
    """

    folder: Path
    plans: Sequence[TensorPlan]
    digests: Mapping[str, str]
    size_bytes: int
    reused: frozenset[str] = frozenset()
    reused_bytes: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Bits of an average element, to two decimals, as llama-quantize states them."""
        return round(8 * self.size_bytes / sum(math.prod(plan.shape) for plan in self.plans), 2)

    @property
    def resumed(self) -> ResumedWork:
        """Work of a killed run that was reused."""
        return ResumedWork(tensors=len(self.reused), bytes=self.reused_bytes)
