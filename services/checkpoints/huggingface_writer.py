"""A Hugging Face model folder, written: weights, configuration, tokenizer files."""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.architectures.checkpoint import TOKENIZER_FILES
from services.architectures.config import config_to_json
from services.architectures.output_spec import OutputSpec
from services.checkpoints.journal import open_journal
from services.checkpoints.safetensors_writer import SafetensorsWriter
from services.checkpoints.streaming import Produce, stream_tensors
from services.checkpoints.write_ledger import TensorPlan
from services.files.tensors import DTYPE_NAMES
from services.progress import CheckCanceled, Report, ignore_progress, never_canceled

MAX_SHARD_BYTES = 5 * 10**9
"""The default of transformers 4's save_pretrained ("5GB", decimal)."""

LLAMA_TOKENIZER_CONFIG: Mapping[str, Any] = {
    "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
    "eos_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False, "legacy": True,
    "model_max_length": 1000000000000000019884624838656,
}  # fmt: skip
"""What the original tokenizer does, for transformers; legacy: text after a special token keeps its space."""


@dataclass(frozen=True, slots=True)
class WrittenModel:
    """What was written: plans of all tensors, the SHA-256 of each one's bytes, and the bytes of all together.

    `kept` are the tensors (by Hugging Face's names) that an earlier try had written, `kept_bytes` what they take as computed.
    """

    folder: Path
    plans: Sequence[TensorPlan]
    digests: Mapping[str, str]
    size_bytes: int
    kept: frozenset[str] = frozenset()
    kept_bytes: int = 0

    @property
    def resumed(self) -> dict[str, int]:
        """How much an earlier try has saved, for a job's result."""
        return {"tensors": len(self.kept), "bytes": self.kept_bytes}


@dataclass(frozen=True, slots=True)
class WriteHooks:
    """How a caller follows and stops a piece of work, and where it notes what is finished, so that it can go on when killed.

    `journal` must not lie in the folder that is written.
    """

    report: Report = ignore_progress
    check_canceled: CheckCanceled = never_canceled
    journal: Path | None = None


@dataclass(frozen=True, slots=True)
class FolderSpec:
    """What the folder is to hold besides the tensors' values.

    `max_shard_bytes` counts for Hugging Face's layout, `template` (a name in services/templates.py) for GGUF's Modelfile.
    `identity` tells it from other work of a journal (services/checkpoints/journal.py).
    """

    output: OutputSpec
    tokenizer_folder: Path
    max_shard_bytes: int = MAX_SHARD_BYTES
    template: str | None = None
    identity: str = ""

    @property
    def plans(self) -> list[TensorPlan]:
        """The tensors as they are computed, under Hugging Face's names."""
        return [TensorPlan(name, dtype, shape) for name, (dtype, shape) in self.output.tensors.items()]

    def kept_bytes(self, names: Collection[str]) -> int:
        """Bytes of some tensors as they are computed."""
        return sum(plan.size_bytes for plan in self.plans if plan.name in names)


def write_huggingface(target: Path, layout: FolderSpec, produce: Produce, watch: WriteHooks) -> WrittenModel:
    """Writes a model folder; `produce` gives each planned tensor by name.

    Raises:
        DiskFull, JobCanceled, InternalError, and whatever `produce` raises.
    """
    journal = open_journal(watch.journal, layout.identity, target)
    write_config(target, layout)
    copy_tokenizer(layout.tokenizer_folder, target)
    with SafetensorsWriter(target, layout.plans, layout.max_shard_bytes, journal) as writer:
        stream_tensors(
            layout.plans, produce, writer, report=watch.report, check_canceled=watch.check_canceled
        )  # fmt: skip
    return WrittenModel(
        target,
        layout.plans,
        writer.digests,
        writer.size_bytes,
        frozenset(writer.kept),
        layout.kept_bytes(writer.kept),
    )


def write_config(target: Path, layout: FolderSpec) -> None:
    """Writes `config.json` and `generation_config.json`."""
    largest = max(layout.plans, key=lambda plan: plan.size_bytes)
    config = layout.output.config
    write_json(target / "config.json", config_to_json(config, DTYPE_NAMES[largest.dtype]))
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(target / "generation_config.json", {"_from_model_config": True, **ids})


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer's files byte for byte; services/tokenizers/folder.py adds what is missing beside them."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes readable JSON; Chinese stays Chinese."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
