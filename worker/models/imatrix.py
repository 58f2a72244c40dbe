"""Importance matrix of a conversion's or a merge's GGUF output: read from its file, or computed from its text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.architectures.checkpoint import Checkpoint
from services.architectures.gguf_imatrix import check_imatrix
from services.architectures.output_spec import OutputSpec
from services.checkpoints.importance import ImportanceMatrix, read_importance
from services.checkpoints.write_hooks import WriteHooks
from services.files.gguf_imatrix import read_imatrix_header
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.merge import ScaledAdapter
from services.models.text_file import read_text_file
from services.verify import CalibrationText, compute_importance
from worker.lifecycle import JobContext
from worker.models.reuse import imatrix_identity


def output_importance(
    request: ConvertRequest | MergeRequest,
    context: JobContext,
    output: OutputSpec,
    base: Checkpoint,
    adapters: Sequence[ScaledAdapter] = (),
    *,
    tokenizer_folder: Path,
) -> ImportanceMatrix | None:
    """Returns the importance matrix of an output, None if the request has none.

    Raises:
        GraftwerkError: The file or the text cannot be used; nothing was written.
    """
    source = request.imatrix
    if source is None:
        return None
    identity, output = imatrix_identity(request, context.store), replace(output, has_imatrix=True)
    if source.file is not None:
        header = read_imatrix_header(context.store.incoming(source.file))
        check_imatrix(source.file, header.widths, output)
        return read_importance(header, identity, source.file)
    name = str(source.text_file)
    text = CalibrationText(
        name=name, content=read_text_file(context.store, name), identity=identity,
        tokenizer_folder=tokenizer_folder,
    )  # fmt: skip
    hooks = WriteHooks(context.execution.report, context.execution.check_canceled)
    return compute_importance(base, adapters, output, text, hooks)


def imatrix_figures(importance: ImportanceMatrix | None) -> dict[str, Any]:
    """Returns the account of an importance matrix for the result, nothing if there is none."""
    return {} if importance is None else {"imatrix": importance.summary}
