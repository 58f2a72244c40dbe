"""What is measured, each as a process of its own: `python -m bench.contenders NAME FOLDER`."""

import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from bench.fixtures import ADAPTERS


def cp_source(folder: Path) -> None:
    """Copy the original checkpoint's file, as a lower bound for a conversion."""
    subprocess.run(["cp", folder / "original/consolidated.00.pth", folder / "copy"], check=True)


def cp_output(folder: Path) -> None:
    """Copy a merged model's files, as a lower bound for a merge."""
    subprocess.run(["cp", "-r", folder / "volume/merged", folder / "copy"], check=True)


def graftwerk_convert(folder: Path) -> None:
    """A conversion until its model is published, fsync included."""
    from services.convert import convert
    from services.models.store import ModelStore

    with ModelStore(folder / "volume").publishing("converted", execution=uuid.uuid4().hex) as staging:
        convert(folder / "original", staging)


def graftwerk_merge(folder: Path, *, verify: bool = False) -> None:
    """A merge of both adapters until its model is published, fsync included."""
    from services.checkpoints.huggingface import Watch
    from services.merge import MergeOptions, merge
    from services.merge.verify import verify_merge
    from services.models.store import ModelStore

    adapters = [(name, folder / name, 1.0) for name in ADAPTERS]
    with ModelStore(folder / "volume").publishing("merged", execution=uuid.uuid4().hex) as staging:
        merged = merge(folder / "volume/converted", adapters, staging)
        if verify:
            verify_merge(merged, MergeOptions(), Watch())


def graftwerk_merge_verified(folder: Path) -> None:
    """As `graftwerk_merge`, checked before it is published."""
    graftwerk_merge(folder, verify=True)


def peft_merge(folder: Path) -> None:
    """Load, merge one after another, save: what PEFT's documentation shows."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "volume/converted", dtype=torch.float16)
    for name, (_, rows) in ADAPTERS.items():
        model.resize_token_embeddings(rows, mean_resizing=False)
        model = PeftModel.from_pretrained(model, str(folder / name)).merge_and_unload()
    model.save_pretrained(folder / "peft")


def transformers_convert(folder: Path) -> None:
    """The conversion script that transformers 4.31 carried, in an environment of its own beside the fixtures."""
    python = folder / "transformers-4.31/bin/python"
    layout = folder / "layout"
    (layout / "7B").mkdir(parents=True, exist_ok=True)
    for name in ("consolidated.00.pth", "params.json"):
        link = layout / "7B" / name
        if not link.exists():
            link.symlink_to(folder / "original" / name)
    script = "transformers.models.llama.convert_llama_weights_to_hf"
    code = (
        f"import {script} as s; s.write_model(model_path={str(folder / 'script')!r}, "
        f"input_base_path={str(layout / '7B')!r}, model_size='7B')"
    )
    subprocess.run([python, "-c", code], check=True)


CONTENDERS = {
    function.__name__: function
    for function in (
        cp_source, graftwerk_convert, transformers_convert, graftwerk_merge, graftwerk_merge_verified, cp_output, peft_merge,
    )
}  # fmt: skip

OUTPUTS = {
    "cp_source": "copy", "cp_output": "copy", "graftwerk_convert": "volume/converted", "graftwerk_merge": "volume/merged",
    "graftwerk_merge_verified": "volume/merged", "peft_merge": "peft", "transformers_convert": "script",
}  # fmt: skip


def clear(folder: Path, name: str) -> None:
    """Remove what a contender wrote before."""
    output = folder / OUTPUTS[name]
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](Path(sys.argv[2]))
