"""Writer of a Hugging Face model folder: weights, configuration, tokenizer files."""

import shutil
from pathlib import Path

from services.architectures.config import config_to_json
from services.architectures.tokenizer_files import (
    CHAT_TEMPLATE,
    MORE_TEMPLATES,
    TOKENIZER_FILES,
    TokenizerFiles,
)
from services.checkpoints.folder_spec import FolderSpec, WrittenModel
from services.checkpoints.journal import open_journal
from services.checkpoints.safetensors_writer import SafetensorsWriter
from services.checkpoints.streaming import Produce, stream_tensors
from services.checkpoints.write_hooks import WriteHooks
from services.files.json_file import read_json_if_present, write_json
from services.files.tensors import DTYPE_NAMES

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


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
    write_generation_config(target, spec)
    copy_tokenizer(spec.tokenizer_folder, target)
    copy_chat_template(spec.base_folder, target)
    with SafetensorsWriter(target, spec.plans, spec.max_shard_bytes, journal) as writer:
        stream_tensors(spec.plans, produce, writer, hooks)
    return WrittenModel(
        folder=target, plans=spec.plans, digests=writer.digests, size_bytes=writer.size_bytes,
        reused=frozenset(writer.reused), reused_bytes=spec.computed_bytes(writer.reused),
    )  # fmt: skip


def write_config(target: Path, spec: FolderSpec) -> None:
    """Writes `config.json`."""
    largest = max(spec.plans, key=lambda plan: plan.size_bytes)
    write_json(target / CONFIG, config_to_json(spec.output.config, DTYPE_NAMES[largest.dtype]))


def write_generation_config(target: Path, spec: FolderSpec) -> None:
    """Writes the base's `generation_config.json`, byte for byte unless ids of special tokens are missing in it.

    Raises:
        UnreadableFile: The file is damaged.
    """
    path = spec.base_folder / GENERATION_CONFIG
    settings = read_json_if_present(path)
    config = spec.output.config
    pad = config.source.get("pad_token_id")
    ids = {
        "bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id,
        "pad_token_id": pad if isinstance(pad, int) and pad >= 0 else None,
    }  # fmt: skip
    missing = {key: value for key, value in ids.items() if value is not None and settings.get(key) is None}
    if settings and not missing:
        shutil.copyfile(path, target / GENERATION_CONFIG)
    else:
        write_json(target / GENERATION_CONFIG, {**(settings or {"_from_model_config": True}), **missing})


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer's files byte for byte; services/tokenizers/folder.py adds the ones that are missing."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / MORE_TEMPLATES).is_dir():
        shutil.copytree(source / MORE_TEMPLATES, target / MORE_TEMPLATES, dirs_exist_ok=True)


def copy_chat_template(base: Path, target: Path) -> None:
    """Writes the base's chat template if the tokenizer, which may be an adapter's, came without one."""
    if TokenizerFiles(target).chat_template() is not None:
        return
    template = TokenizerFiles(base).chat_template()
    if template is not None:
        (target / CHAT_TEMPLATE).write_bytes(template.encode())
