"""`manifest.json`: what we made, from what, and the digest of every tensor."""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.errors import UnreadableFile

MANIFEST_NAME = "manifest.json"
VERSIONED_PACKAGES = (
    "graftwerk-service",
    "torch",
    "transformers",
    "peft",
    "sentencepiece",
    "safetensors",
    "gguf",
)


class TensorEntry(BaseModel):
    """One tensor: safetensors' dtype code, shape, and the SHA-256 of its bytes in row-major order."""

    model_config = ConfigDict(frozen=True)

    dtype: str
    shape: list[int]
    sha256: str


class InputEntry(BaseModel):
    """A model that went in: its role, name, and digests of its weight files or its tensor digest."""

    model_config = ConfigDict(frozen=True)

    role: str = Field(description="source, base, adapter or addition")
    name: str
    digest: str | None = None
    scale: float | None = None


class Manifest(BaseModel):
    """What a model is and where it came from."""

    model_config = ConfigDict(frozen=True)

    format: str = "graftwerk/1"
    kind: str
    created_at: datetime
    job_id: str | None = None
    identity: str | None = Field(
        default=None,
        description="SHA-256 over the inputs' content and all options: the same request has the same",
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
        description="SHA-256 of each file as it was imported, or beside the weights of what was made",
    )
    versions: dict[str, str] = {}
    warnings: list[str] = []
    result: dict[str, Any] = Field(default={}, description="The figures of the job that made it")


def tensor_digest(tensors: Mapping[str, TensorEntry]) -> str:
    """One SHA-256 for all tensors, whatever files they lie in: over `name dtype shape sha256` lines, sorted."""
    lines = sorted(
        f"{name} {entry.dtype} {'x'.join(map(str, entry.shape))} {entry.sha256}\n"
        for name, entry in tensors.items()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def content_identity(folder: Path) -> str:
    """One SHA-256 for what a folder holds: from the digests of its manifest, as long as no file is younger than that.

    Where somebody has put files or changed them since, names, sizes and times of change stand for the content.

    Raises:
        UnreadableFile: the manifest is damaged.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = {str(path.relative_to(folder)): path.stat() for path in files}
    manifest = read_manifest(folder)
    written_ns = stats[MANIFEST_NAME].st_mtime_ns if manifest is not None else 0
    facts: object
    if manifest is not None and all(stat.st_mtime_ns <= written_ns for stat in stats.values()):
        facts = ("digests", manifest.digest, sorted(manifest.files.items()))
    else:
        facts = ("files", [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()])
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """The versions of the packages that a result depends on, those that are installed."""
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
    """A manifest of now, with the packages' versions and the digest of all tensors."""
    return Manifest(
        kind=kind, operation=operation, created_at=datetime.now(UTC), inputs=list(inputs), tensors=dict(tensors),
        digest=tensor_digest(tensors) if tensors else None, versions=package_versions(), **more,
    )  # fmt: skip


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into a folder."""
    text = manifest.model_dump_json(indent=1, exclude_defaults=False)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest | None:
    """A folder's manifest, None where it has none.

    Raises:
        UnreadableFile: it is damaged.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UnreadableFile(
            f"{folder.name}/{MANIFEST_NAME} is damaged ({error.error_count()} faults)",
            "Make the model again, or delete its manifest if you trust the files.",
        ) from error
