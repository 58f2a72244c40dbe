"""Digests of files and folders of the volume: taken from manifests as far as they have them, computed otherwise."""

import hashlib
from pathlib import Path

from services.adapters.adapter import Adapter
from services.models.manifest import MANIFEST_NAME, Manifest, TensorEntry, read_manifest, tensor_digest


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(adapter: Adapter, limit_bytes: int) -> str | None:
    """Returns the SHA-256 of an adapter's weight file, None if it is larger than the limit and has no manifest."""
    manifest = read_manifest(adapter.folder)
    recorded = manifest.files.get(adapter.weights.name) if manifest else None
    if recorded is not None or adapter.weights.stat().st_size > limit_bytes:
        return recorded
    return digest_file(adapter.weights)


def model_digest(manifest: Manifest) -> str:
    """Returns the digest of a model's tensors; of an imported model, one digest over those of its files."""
    if manifest.digest is not None:
        return manifest.digest
    files = {
        name: TensorEntry(dtype="file", shape=[], sha256=digest) for name, digest in manifest.files.items()
    }
    return tensor_digest(files)


def content_identity(folder: Path) -> str:
    """Returns one SHA-256 for the content of a folder.

    It is made of the digests of the manifest. If a file is younger than the manifest, or there is none, names, sizes and
    times of change are taken for the content.

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
