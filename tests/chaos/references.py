"""Undisturbed runs of every recipe: the results that jobs under faults are compared with."""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tests.chaos.api import Api
from tests.chaos.decisive_parts import decisive
from tests.chaos.recipes import MINIATURE, RECIPES, Json
from tests.chaos.recorder import ENDED
from tests.e2e.slow_model import write_slow_adapter, write_slow_model

DESCRIPTIONS = ("manifest.json", "README.md")
"""Files of a model that name it, its job and the time; they differ between equal models."""

BY_TENSORS = (".gguf", ".pth")
"""Files that are compared by the digest of their tensors: the metadata of one name the model, the other has tensors in any order."""

SLOW_LAYERS = 4
TOOL_TEMPLATE = (
    "{%- if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{%- for m in messages %}{{ m.role }}: {{ m.content }}"
    "{%- for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "{%- if add_generation_prompt %}assistant: {% endif %}"
)
JOB_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Result of an undisturbed run: digests of the files of a model, or the decisive part of a job's result."""

    digests: dict[str, str] | None = None
    result: object = None
    streamed: object = None


def prepare(api: Api, models: Path) -> list[Json]:
    """Puts the inputs on the volume and makes the models that all jobs read; returns these jobs."""
    incoming = models / "incoming"
    shutil.copytree(MINIATURE / "llama", incoming / "llama")
    for name, archive in (("zh", "chinese-llama-lora.zip"), ("alpaca", "chinese-alpaca-lora.zip")):
        shutil.copyfile(MINIATURE / archive, incoming / f"{name}.zip")
    tokenizer = MINIATURE / "llama" / "tokenizer.model"
    write_slow_model(incoming / "slow", tokenizer, vocab_size=608, layers=SLOW_LAYERS)
    write_slow_adapter(incoming / "slow-adapter", layers=SLOW_LAYERS)
    sources: dict[str, Json] = {
        **{name: {"path": f"incoming/{name}"} for name in ("llama", "slow", "slow-adapter")},
        **{name: {"zip": f"incoming/{name}.zip"} for name in ("zh", "alpaca")},
    }
    jobs = [
        run(api, {"kind": "import", "source": source, "target": name}) for name, source in sources.items()
    ]
    jobs.append(run(api, {"kind": "convert", "source": "llama", "target": "llama-hf"}))
    jobs.append(run(api, {**RECIPES["merge"].request, "target": "merged"}))
    for name in ("merged", "slow"):
        gguf = {"output_format": "gguf", "dtype": "float16", "target": f"{name}-gguf"}
        jobs.append(run(api, {"kind": "convert", "source": name, **gguf}))
    _write_tool_model(models / "merged", incoming / "tool-model")
    source = {"path": "incoming/tool-model"}
    return [*jobs, run(api, {"kind": "import", "source": source, "target": "tool-model"})]


def _write_tool_model(merged: Path, folder: Path) -> None:
    """Copies a model with a chat template that takes tools."""
    shutil.copytree(merged, folder, ignore=shutil.ignore_patterns(*DESCRIPTIONS))
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TOOL_TEMPLATE, encoding="utf-8")


def run(api: Api, request: Json) -> Json:
    """Returns a job after it has succeeded."""
    job_id = str(uuid4())
    response = api.send("PUT", f"/api/jobs/{job_id}", json=request)
    if not response.is_success:
        raise AssertionError(f"without any fault, {request['kind']} is refused: {response.text[:500]}")
    deadline = time.monotonic() + JOB_SECONDS
    while (job := api.job(job_id))["status"] not in ENDED and time.monotonic() < deadline:
        time.sleep(0.1)
    if job["status"] != "succeeded":
        raise AssertionError(f"without any fault, {request['kind']} is {job['status']}: {job['error']}")
    return job


def run_recipe(api: Api, models: Path, name: str) -> tuple[Json, Reference]:
    """Runs a recipe alone; returns its job and its reference."""
    recipe = RECIPES[name]
    request: Json = {**recipe.request}
    if recipe.follows is not None:
        request[recipe.reads] = "merged"
    if recipe.uploads:
        request["source"] = {"upload": [api.upload(MINIATURE / file) for file in recipe.uploads]}
    target = f"reference-{list(RECIPES).index(name)}"
    job = run(api, {**request, "target": target} if recipe.makes else request)
    return job, reference_of(name, job, models / target)


def reference_of(name: str, job: Json, folder: Path) -> Reference:
    """Returns what jobs of this recipe must have in common."""
    if RECIPES[name].makes:
        return Reference(digests=digests(folder))
    return Reference(result=decisive(name, job["result"]))


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of a model, except those that describe it."""
    files: Sequence[Path] = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): _tensor_digest(folder)
        if path.suffix in BY_TENSORS
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in DESCRIPTIONS
    }


def _tensor_digest(folder: Path) -> str:
    """Returns the digest of all tensors by the manifest, which a `verify` job computes again."""
    return str(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["digest"])
