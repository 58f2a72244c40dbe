"""The one table of output formats: converting and merging write through it and know no layout."""

from collections.abc import Callable, Mapping
from pathlib import Path

from services.architectures.output_spec import OutputFormat
from services.checkpoints.folder_spec import FolderSpec, WrittenModel
from services.checkpoints.gguf_writer import write_gguf
from services.checkpoints.huggingface_writer import write_huggingface
from services.checkpoints.meta_writer import write_meta
from services.checkpoints.streaming import Produce
from services.checkpoints.write_hooks import WriteHooks

Writer = Callable[[Path, FolderSpec, Produce, WriteHooks], WrittenModel]

WRITERS: Mapping[OutputFormat, Writer] = {
    "huggingface": write_huggingface,
    "meta": write_meta,
    "gguf": write_gguf,
}


def write_model(target: Path, spec: FolderSpec, produce: Produce, hooks: WriteHooks) -> WrittenModel:
    """Writes a model into the empty folder `target`, in the format that its output names.

    Raises:
        Whatever `check_output` refuses, before anything is written; DiskFull, JobCanceled, and whatever `produce` raises.
    """
    return WRITERS[spec.output.format](target, spec, produce, hooks)
