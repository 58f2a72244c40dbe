"""The one table of output formats: converting and merging write through it and know no layout."""

from collections.abc import Callable, Mapping
from pathlib import Path

from services.checkpoints.gguf import write_gguf
from services.checkpoints.huggingface import Layout, Watch, WrittenModel, write_huggingface
from services.checkpoints.meta import write_meta
from services.checkpoints.streaming import Produce
from services.formats.outputs import OutputFormat

Writer = Callable[[Path, Layout, Produce, Watch], WrittenModel]

WRITERS: Mapping[OutputFormat, Writer] = {
    "huggingface": write_huggingface,
    "meta": write_meta,
    "gguf": write_gguf,
}


def write_model(target: Path, layout: Layout, produce: Produce, watch: Watch) -> WrittenModel:
    """Writes a model into the empty folder `target`, in the format that its output names.

    Raises:
        Whatever `check_output` refuses, before anything is written; DiskFull, JobCanceled, and whatever `produce` raises.
    """
    return WRITERS[layout.output.format](target, layout, produce, watch)
