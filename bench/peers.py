"""Other tools for the same work, as commands; two of them in separate environments."""

import subprocess
import sys
import venv
from pathlib import Path

from bench.contenders import PLAIN_ADAPTER

ENVIRONMENTS = {
    "transformers-4.31": (
        "transformers==4.31.0", "torch==2.13.0", "accelerate==0.21.0", "sentencepiece", "protobuf<4", "numpy<2",
    ),
    "mergekit": ("mergekit==0.1.5", "torch==2.13.0"),
}  # fmt: skip
"""The last transformers with the conversion script of 2023, with a current torch; mergekit unmodified."""

ENVIRONMENT_OF = {"transformers_convert": "transformers-4.31", "mergekit_merge_plain": "mergekit"}


def set_up(folder: Path) -> None:
    """Builds missing environments with pip."""
    for name, requirements in ENVIRONMENTS.items():
        if (folder / name / ".ready").exists():
            continue
        venv.create(folder / name, with_pip=True, clear=True)
        subprocess.run(
            [folder / name / "bin/python", "-m", "pip", "install", "--quiet", *requirements], check=True
        )
        (folder / name / ".ready").touch()


def is_there(name: str, environments: Path) -> bool:
    """Returns True if the environment that a contender needs has been built."""
    return name not in ENVIRONMENT_OF or (environments / ENVIRONMENT_OF[name] / ".ready").exists()


def command_of(name: str, folder: Path, environments: Path) -> list[str]:
    """Returns the command of a contender; those of this project are a module of this folder."""
    match name:
        case "cp_source":
            return ["cp", str(folder / "original/consolidated.00.pth"), str(folder / "copy")]
        case "cp_output":
            return ["cp", "-r", str(folder / "volume/merged"), str(folder / "copy")]
        case "transformers_convert":
            return _transformers_convert(folder, environments / ENVIRONMENT_OF[name])
        case "mergekit_merge_plain":
            return _mergekit(folder, environments / ENVIRONMENT_OF[name])
        case _:
            return [sys.executable, "-m", "bench.contenders", name, str(folder)]


def _transformers_convert(folder: Path, environment: Path) -> list[str]:
    """Returns the command of the conversion script in transformers 4.31."""
    layout = folder / "layout/7B"
    layout.mkdir(parents=True, exist_ok=True)
    for name in ("consolidated.00.pth", "params.json"):
        link = layout / name
        if not link.exists():
            link.symlink_to(folder / "original" / name)
    call = f"script.write_model(model_path={str(folder / 'script')!r}, input_base_path={str(layout)!r}, model_size='7B')"
    return _timed(environment, "import transformers.models.llama.convert_llama_weights_to_hf as script", call)


def _mergekit(folder: Path, environment: Path) -> list[str]:
    """mergekit with a LoRA: PEFT merges it into a cache, from where mergekit copies the tensors."""
    reference = f"{folder / 'volume/converted'}+{folder / PLAIN_ADAPTER}"
    config = {"merge_method": "passthrough", "dtype": "float16", "models": [{"model": reference}]}
    output, cache = str(folder / "mergekit"), str(folder / "mergekit/cache")
    modules = (
        "from mergekit.config import MergeConfiguration; from mergekit.merge import run_merge; "
        "from mergekit.options import MergeOptions"
    )
    call = (
        f"run_merge(MergeConfiguration.model_validate({config!r}), {output!r}, "
        f"MergeOptions(lora_merge_cache={cache!r}, copy_tokenizer=False))"
    )
    return _timed(environment, modules, call)


def _timed(environment: Path, modules: str, call: str) -> list[str]:
    """Returns a command that prints the time of a call without the imports, like this project's contenders."""
    told = "print('\\n' + json.dumps({'work_seconds': time.monotonic() - start}))"
    code = f"import json, time\n{modules}\nstart = time.monotonic()\n{call}\n{told}"
    return [str(environment / "bin/python"), "-c", code]
