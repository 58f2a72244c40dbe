"""Writer of a Hugging Face model folder: weights, configuration, tokenizer files."""

import shutil
from pathlib import Path

from services.architectures.config import config_to_json
from services.architectures.tokenizer_files import TOKENIZER_FILES
from services.checkpoints.folder_spec import FolderSpec, WrittenModel
from services.checkpoints.journal import open_journal
from services.checkpoints.safetensors_writer import SafetensorsWriter
from services.checkpoints.streaming import Produce, stream_tensors
from services.checkpoints.write_hooks import WriteHooks
from services.files.json_file import write_json
from services.files.tensors import DTYPE_NAMES


def write_huggingface(target: Path, spec: FolderSpec, produce: Produce, hooks: WriteHooks) -> WrittenModel:
    """Writes a model folder; `produce` gives each planned tensor by name.

    Errors of `produce` are raised as they are.

    Raises:
        DiskFull: The volume has no space for the tensors.
        JobCanceled: The caller has canceled the work.
        InternalError: `produce` does not give the planned tensors.
    """
    journal = open_journal(hooks.journal, spec.identity, target)
    write_config(target, spec)
    copy_tokenizer(spec.tokenizer_folder, target)
    with SafetensorsWriter(target, spec.plans, spec.max_shard_bytes, journal) as writer:
        stream_tensors(spec.plans, produce, writer, hooks)
    return WrittenModel(
        folder=target, plans=spec.plans, digests=writer.digests, size_bytes=writer.size_bytes,
        reused=frozenset(writer.reused), reused_bytes=spec.computed_bytes(writer.reused),
    )  # fmt: skip


def write_config(target: Path, spec: FolderSpec) -> None:
    """Writes `config.json` and `generation_config.json`."""
    largest = max(spec.plans, key=lambda plan: plan.size_bytes)
    config = spec.output.config
    write_json(target / "config.json", config_to_json(config, DTYPE_NAMES[largest.dtype]))
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(target / "generation_config.json", {"_from_model_config": True, **ids})


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer's files byte for byte; services/tokenizers/folder.py adds the ones that are missing."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
