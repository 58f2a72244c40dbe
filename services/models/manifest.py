"""`manifest.json`: kind, origin and digests of a model that a job has made."""

import ast
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from services.errors import UnreadableFile
from services.files.json_file import JSON_LIMIT_BYTES, check_budget
from services.files.regular_file import read_regular
from services.validation import is_none

MANIFEST_NAME = "manifest.json"
HINT = "Make the model again, or delete its manifest if you trust the files."
VERSIONED_PACKAGES = (
    "graftwerk-service",
    "torch",
    "transformers",
    "peft",
    "sentencepiece",
    "safetensors",
    "gguf",
    "bitsandbytes",
)
"""Distributions whose versions a manifest records. Manifests of version 0.1.0 call the first one `graftwerk`."""


class TensorEntry(BaseModel):
    """One tensor: safetensors' dtype code, shape, and the SHA-256 of its bytes in row-major order."""

    model_config = ConfigDict(frozen=True)

    dtype: str
    shape: list[int]
    sha256: str


class InputEntry(BaseModel):
    """An input of the job: its role, name, and the digest of its weight file or its tensors.

    The name is a model's or, for an import, the path of the source under `incoming/` or the id on the Hub (with `@revision` if
    one was named), whose `commit` was taken.
    """

    model_config = ConfigDict(frozen=True)

    role: str = Field(description="source, base, adapter or addition")
    name: str
    digest: str | None = None
    scale: float | None = None
    commit: str | None = Field(default=None, exclude_if=is_none)

    @field_validator("name")
    @classmethod
    def _plain_source(cls, name: str) -> str:
        """Reads the names of version 0.1.0, which wrote the source of an import as `{'path': 'incoming/llama'}`."""
        if not name.startswith("{"):
            return name
        try:
            source = ast.literal_eval(name)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return name
        keys = ("path", "zip", "hub")
        found = [source[key] for key in keys if key in source] if isinstance(source, dict) else []
        return found[0] if found and isinstance(found[0], str) else name


class Manifest(BaseModel):
    """Kind, origin and digests of a model."""

    model_config = ConfigDict(frozen=True)

    format: str = "graftwerk/1"
    kind: str
    created_at: datetime
    job_id: str | None = None
    identity: str | None = Field(
        default=None,
        description="SHA-256 over the inputs' content and all options: identical requests have the same one",
    )
    operation: str = Field(description="the kind of job: import, convert, …")
    options: dict[str, Any] = {}
    inputs: list[InputEntry] = []
    digest: str | None = Field(
        default=None, description="SHA-256 over the tensors' names, dtypes, shapes and digests"
    )
    tensors: dict[str, TensorEntry] = {}
    files: dict[str, str] = Field(
        default={},
        description="SHA-256 of each imported file, or of each file next to the weights of a made model",
    )
    origin: dict[str, Any] = Field(
        default={}, description="Of a GGUF source: its name, licence and base models, as the file states them"
    )
    versions: dict[str, str] = {}
    warnings: list[str] = []
    result: dict[str, Any] = Field(default={}, description="Figures of the job that made it")


def tensor_digest(tensors: Mapping[str, TensorEntry]) -> str:
    """Returns one SHA-256 for all tensors, independent of their files: over sorted lines `name dtype shape sha256`."""
    lines = sorted(
        f"{name} {entry.dtype} {'x'.join(map(str, entry.shape))} {entry.sha256}\n"
        for name, entry in tensors.items()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Returns the versions of the installed packages that a result depends on."""
    versions = {}
    for name in VERSIONED_PACKAGES:
        try:
            versions[name] = str(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def new_manifest(
    *,
    kind: str,
    operation: str,
    inputs: Sequence[InputEntry],
    tensors: Mapping[str, TensorEntry],
    **more: Any,
) -> Manifest:
    """Returns a manifest with the present time, the packages' versions and the digest of all tensors."""
    return Manifest(
        kind=kind, operation=operation, created_at=datetime.now(UTC), inputs=list(inputs), tensors=dict(tensors),
        digest=tensor_digest(tensors) if tensors else None, versions=package_versions(), **more,
    )  # fmt: skip


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into a folder; one that was imported is replaced, not changed: it may be a link."""
    text = manifest.model_dump_json(indent=1, exclude_defaults=False)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest | None:
    """Returns a folder's manifest, None if it has none.

    Raises:
        UnreadableFile: the manifest is damaged.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    data = read_regular(path, JSON_LIMIT_BYTES, hint=HINT)
    try:
        check_budget(data)
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise UnreadableFile(
            f"{folder.name}/{MANIFEST_NAME} is damaged ({error.error_count()} faults).", HINT
        ) from error
    except ValueError as error:
        raise UnreadableFile(f"{folder.name}/{MANIFEST_NAME} is damaged ({error}).", HINT) from error
