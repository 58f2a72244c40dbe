"""Contenders from this project's packages, each in a separate process: `python -m bench.contenders NAME FOLDER`.

Each prints JSON: `work_seconds` without the imports, and what else it found out.
"""

import json
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

ADAPTERS = ("a", "b")
"""With embeddings of a larger vocabulary, like the published ones."""

PLAIN_ADAPTER = "plain"
"""Without embeddings, so that mergekit can merge it too."""

CANCEL_AT = 0.3
"""Fraction of a merge after which it is canceled."""

Found = dict[str, Any]


def publishing(folder: Path, name: str) -> AbstractContextManager[Path]:
    """Returns a context manager that yields a staging folder and publishes it as a model of the volume."""
    from services.models.store import ModelStore

    return ModelStore(folder / "volume").publishing(name, execution=uuid.uuid4().hex)


def graftwerk_convert(folder: Path) -> Found:
    """Converts until the model is published, including fsync."""
    from services.convert import convert

    start = time.monotonic()
    with publishing(folder, "converted") as staging:
        convert(folder / "original", staging)
    return {"work_seconds": time.monotonic() - start}


def _merge(folder: Path, adapters: tuple[str, ...], *, verify: bool) -> Found:
    from bench.eta_accuracy import EtaAccuracy
    from services.checkpoints.write_hooks import WriteHooks
    from services.merge import MergeOptions, merge
    from services.verify import verify_merge

    eta_accuracy = EtaAccuracy()
    watch = WriteHooks(eta_accuracy.report)
    start = time.monotonic()
    with publishing(folder, "merged") as staging:
        stack = [(name, folder / name, 1.0) for name in adapters]
        merged = merge(folder / "volume/converted", stack, staging, hooks=watch)
        if verify:
            verify_merge(merged, MergeOptions(), watch)
    return {"work_seconds": time.monotonic() - start, "eta": eta_accuracy.accuracy()}


def graftwerk_merge(folder: Path) -> Found:
    """Merges both adapters until the model is published, including fsync."""
    return _merge(folder, ADAPTERS, verify=False)


def graftwerk_merge_verified(folder: Path) -> Found:
    """Like `graftwerk_merge`, with verification before it is published."""
    return _merge(folder, ADAPTERS, verify=True)


def graftwerk_merge_plain(folder: Path) -> Found:
    """Merges the one adapter that mergekit can merge too."""
    return _merge(folder, (PLAIN_ADAPTER,), verify=False)


def graftwerk_merge_canceled(folder: Path) -> Found:
    """Measures the time from a cancellation until the staging folder is removed."""
    from services.checkpoints.write_hooks import WriteHooks
    from services.errors import JobCanceled
    from services.merge import merge
    from services.progress import Progress

    canceled = threading.Event()
    asked = 0.0

    def report(progress: Progress) -> None:
        nonlocal asked
        if not canceled.is_set() and (progress.fraction or 0) >= CANCEL_AT:
            asked = time.monotonic()
            canceled.set()

    def check() -> None:
        if canceled.is_set():
            raise JobCanceled("the job was canceled while it ran")

    try:
        with publishing(folder, "canceled") as staging:
            stack = [(name, folder / name, 1.0) for name in ADAPTERS]
            merge(folder / "volume/converted", stack, staging, hooks=WriteHooks(report, check))
    except JobCanceled:
        stopped = time.monotonic()
    left = [path.name for path in (folder / "volume").glob("canceled*")]
    assert not left, left
    return {"work_seconds": 0.0, "cancel_seconds": stopped - asked}


def peft_merge(folder: Path) -> Found:
    """Loads, merges one adapter after another and saves, as in PEFT's documentation."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    start = time.monotonic()
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "volume/converted", dtype=torch.float16)
    for name in ADAPTERS:
        rows = json.loads((folder / name / "rows.json").read_text())
        model.resize_token_embeddings(rows, mean_resizing=False)
        model = PeftModel.from_pretrained(model, str(folder / name)).merge_and_unload()
    model.save_pretrained(folder / "peft")
    return {"work_seconds": time.monotonic() - start}


CONTENDERS: dict[str, Callable[[Path], Found]] = {
    function.__name__: function
    for function in (
        graftwerk_convert, graftwerk_merge, graftwerk_merge_verified, graftwerk_merge_plain, graftwerk_merge_canceled,
        peft_merge,
    )
}  # fmt: skip

OUTPUTS = {
    "cp_source": "copy", "cp_output": "copy", "graftwerk_convert": "volume/converted", "graftwerk_merge": "volume/merged",
    "graftwerk_merge_verified": "volume/merged", "graftwerk_merge_plain": "volume/merged", "peft_merge": "peft",
    "transformers_convert": "script", "mergekit_merge_plain": "mergekit",
}  # fmt: skip


def clear(folder: Path, name: str) -> None:
    """Removes the output of an earlier run of a contender."""
    output = folder / OUTPUTS[name] if name in OUTPUTS else None
    if output is not None and output.is_dir():
        shutil.rmtree(output)
    elif output is not None:
        output.unlink(missing_ok=True)


if __name__ == "__main__":
    print(json.dumps(CONTENDERS[sys.argv[1]](Path(sys.argv[2]))))
