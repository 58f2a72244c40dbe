"""PEFT folder of a new adapter: `adapter_config.json`, `adapter_model.safetensors` and, for a grown vocabulary, tokenizer files.

Factors are float32: in a half they would add an error of their own to a difference that the half has rounded already. Every pair
has the adapter's rank, smaller ones are filled up with zeros, and alpha equals it: so the scale is 1 in every program, also in
llama.cpp, which divides one alpha by the rank of each pair.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from services.adapter_tools.factorization import Factors, Spectrum
from services.adapters.adapter import CONFIG_FILE
from services.adapters.tuners import PREFIX
from services.checkpoints.huggingface_writer import copy_tokenizer
from services.checkpoints.safetensors_writer import SafetensorsWriter
from services.checkpoints.tensor_reader import check_finite
from services.checkpoints.write_hooks import WriteHooks
from services.checkpoints.write_ledger import TensorPlan
from services.files.json_file import Json, write_json
from services.progress import Progress

ONE_FILE = 2**62
"""Size limit of a shard: PEFT reads a single file."""

NO_TARGETS = "dummy-target-modules"
"""PEFT's name for an adapter without LoRA layers (peft/utils/constants.py, DUMMY_TARGET_MODULES)."""


@dataclass(frozen=True, slots=True)
class PairPlan:
    """A LoRA pair to be written: its module, and rows and columns of the product B @ A.

    The product of an embedding is its change transposed.
    """

    module: str
    shape: tuple[int, int]
    embedding: bool = False

    @property
    def keys(self) -> tuple[str, str]:
        """Keys of A and B in the file."""
        at = f"{PREFIX}{self.module}.lora_"
        return (
            (f"{at}embedding_A", f"{at}embedding_B") if self.embedding else (f"{at}A.weight", f"{at}B.weight")
        )

    @property
    def elements(self) -> int:
        """Elements of the product."""
        return self.shape[0] * self.shape[1]

    def plans(self, rank: int) -> tuple[TensorPlan, TensorPlan]:
        """Returns the plans of A and B."""
        rows, columns = self.shape
        a, b = self.keys
        return TensorPlan(a, "F32", (rank, columns)), TensorPlan(b, "F32", (rows, rank))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """Everything about an adapter's folder except the values of its tensors.

    Attributes:
        whole: Tensors that replace the base's, under their keys in the file.
        saved_modules: Modules of those tensors that PEFT replaces (`modules_to_save`).
        biases: Biases are among them.
        tied: The embedding is among them, and the head stays tied to it.
        transposed: Modules are Conv1D, whose weights are transposed (`fan_in_fan_out`).
        tokenizer_folder: Folder whose tokenizer files are copied, None for none.
    """

    rank: int
    base_name: str | None
    pairs: Sequence[PairPlan]
    whole: Sequence[TensorPlan] = ()
    saved_modules: Sequence[str] = ()
    biases: bool = False
    tied: bool = False
    transposed: bool = False
    tokenizer_folder: Path | None = None

    @property
    def plans(self) -> list[TensorPlan]:
        """All tensors of the file, in order."""
        return [plan for pair in self.pairs for plan in pair.plans(self.rank)] + list(self.whole)

    @property
    def config(self) -> Json:
        """Content of `adapter_config.json`."""
        return {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": self.base_name, "r": self.rank,
            "lora_alpha": self.rank, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "rank_pattern": {},
            "alpha_pattern": {}, "target_modules": [pair.module for pair in self.pairs] or NO_TARGETS,
            "modules_to_save": list(self.saved_modules) or None, "bias": "all" if self.biases else "none",
            "ensure_weight_tying": self.tied, "init_lora_weights": True,
            "fan_in_fan_out": self.transposed, "inference_mode": True,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class WrittenAdapter:
    """Account of a written folder: tensors, the SHA-256 of each, and the spectrum of each pair's change by module."""

    folder: Path
    plans: Sequence[TensorPlan]
    digests: Mapping[str, str]
    spectra: Mapping[str, Spectrum]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(plan.size_bytes for plan in self.plans)


def write_adapter(
    target: Path,
    spec: AdapterSpec,
    compute: Callable[[PairPlan], Factors],
    read: Callable[[str], Iterable[torch.Tensor]],
    hooks: WriteHooks,
) -> WrittenAdapter:
    """Writes an adapter's folder, one tensor after another.

    Args:
        compute: Gives the factors of a pair.
        read: Gives a whole tensor by its key, as blocks of rows.

    Raises:
        DiskFull: The volume has no space for the tensors.
        JobCanceled: The caller has canceled the work.
        NonFiniteTensor: A factor holds NaN or infinity.
    """
    write_json(target / CONFIG_FILE, spec.config)
    if spec.tokenizer_folder is not None:
        copy_tokenizer(spec.tokenizer_folder, target)
    spectra: dict[str, Spectrum] = {}
    total, done = sum(pair.elements for pair in spec.pairs), 0
    with SafetensorsWriter(target, spec.plans, ONE_FILE, stem="adapter_model") as writer:
        for pair in spec.pairs:
            hooks.check_canceled()
            hooks.report(Progress("computing factors", done, total, "parameters"))
            factors = compute(pair)
            for key, factor in zip(pair.keys, (factors.a, factors.b), strict=True):
                check_finite(key, factor)
                writer.write(key, [factor])
            spectra[pair.module] = factors.spectrum
            done += pair.elements
        for plan in spec.whole:
            hooks.check_canceled()
            writer.write(plan.name, read(plan.name))
    return WrittenAdapter(target, spec.plans, writer.digests, spectra)
