"""Folder that a model is loaded from: its own, or a temporary one with its adapters merged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from services.checkpoints.write_hooks import WriteHooks
from services.merge import merge
from worker.inference.model_key import ModelKey
from worker.lifecycle import JobContext


@contextmanager
def folder_of(key: ModelKey, context: JobContext) -> Iterator[Path]:
    """The model's folder; with adapters, a temporary folder with the merged model.

    The merge is that of a merge job, so the output equals the merged model's for all adapters, including those with a
    larger vocabulary.
    """
    if not key.adapters:
        yield context.store.path(key.model)
        return
    execution = context.execution
    scratch = context.store.staging.root / execution.name
    scratch.mkdir(parents=True)
    try:
        adapters = [(name, context.store.path(name), scale) for name, scale, _ in key.adapters]
        hooks = WriteHooks(execution.report, execution.check_canceled)
        merge(context.store.path(key.model), adapters, scratch, hooks=hooks)
        yield scratch
    finally:
        rmtree(scratch, ignore_errors=True)
