"""Table of the writers by output format: conversions and merges write through it and are independent of the layout."""

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
    """Writes a model into the empty folder `target`, in the format of its output.

    Errors of `produce`, and of `check_output` before anything is written, are raised as they are.

    Raises:
        DiskFull: The volume has no space for the tensors.
        JobCanceled: The caller has canceled the work.
        InternalError: `produce` does not give the planned tensors.
    """
    return WRITERS[spec.output.format](target, spec, produce, hooks)
