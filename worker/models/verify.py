"""The verify job: a model against its manifest, and against what it was made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.checkpoints.huggingface_writer import WriteHooks
from services.checkpoints.readback import StoredTensor, tensors_of
from services.checkpoints.tensor_reader import TensorReader
from services.errors import GraftwerkError
from services.kinds.verify import VerifyRequest
from services.models.imports import digest_file
from services.models.manifest import MANIFEST_NAME, Manifest, read_manifest
from services.models.summary import kind_of_folder
from services.preflight import VERIFIED_FORMATS, preflight
from services.progress import Progress
from services.verify.report import expected_merge, verify_model
from worker.lifecycle import JobContext

Difference = dict[str, str]


def run_verify(request: VerifyRequest, context: JobContext) -> Mapping[str, Any]:
    """The report; `passed` is the verdict, `differences` its reasons."""
    preflight(request, context.store, {})
    folder = context.store.path(request.model)
    watch = WriteHooks(context.report, context.check_canceled)
    manifest = read_manifest(folder)
    recorded = against_manifest(folder, manifest, watch) if manifest is not None else {}
    made = against_base(request, context, watch) if request.base is not None else {}
    differences = [*recorded.pop("differences", []), *made.pop("differences", [])]
    passed = recorded.get("passed", True) and made.get("passed", True)
    against = [name for name, found in (("manifest", recorded), ("base and adapters", made)) if found]
    figures = {**recorded, **made, "passed": passed, "differences": differences}
    return {"model": request.model, "against": against, **figures}


def against_manifest(folder: Path, manifest: Manifest, watch: WriteHooks) -> dict[str, Any]:
    """Every tensor and file that the manifest has a digest of, read again."""
    differences: list[Difference] = []
    stored = _stored(folder, differences) if manifest.tensors else {}
    tensors = _changed_tensors(stored, manifest, watch, differences) if stored else 0
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    total = sum((folder / name).stat().st_size for name in manifest.files if name in names)
    done = 0
    for name, digest in manifest.files.items():
        watch.check_canceled()
        watch.report(Progress("verifying files", done, total))
        if name not in names:
            differences.append({"file": name, "message": f"{name} is missing"})
            continue
        done += (folder / name).stat().st_size
        found = digest_file(folder / name)
        if found != digest:
            message = f"{name} has SHA-256 {found}, the manifest says {digest}"
            differences.append({"file": name, "message": message})
    # the files that hold the manifest's tensors: their content is checked tensor by tensor
    weights = {part.path.name for tensor in stored.values() for part in tensor.source.parts}
    unlisted = sorted(names - set(manifest.files) - weights - {MANIFEST_NAME})
    return {
        "passed": not differences, "digests_equal": tensors, "files": len(manifest.files),
        "unlisted_files": unlisted, "differences": differences,
    }  # fmt: skip


def _stored(folder: Path, differences: list[Difference]) -> dict[str, StoredTensor]:
    """The model's tensors; nothing where it cannot be read any more, which is a difference."""
    try:
        return tensors_of(folder)
    except GraftwerkError as error:
        differences.append({"file": folder.name, "message": f"the model cannot be read: {error.message}"})
        return {}


def _changed_tensors(
    stored: Mapping[str, StoredTensor], manifest: Manifest, watch: WriteHooks, differences: list[Difference]
) -> int:
    """How many tensors have the digest that the manifest says; the others are added to the differences."""
    total, done, equal = sum(tensor.source.size_bytes for tensor in stored.values()), 0, 0
    for name in sorted(stored.keys() - manifest.tensors.keys()):
        differences.append({"tensor": name, "message": f"{name!r} is not in the manifest"})
    with TensorReader() as reader:
        for name, entry in manifest.tensors.items():
            watch.check_canceled()
            tensor = stored.get(name)
            if tensor is None:
                differences.append({"tensor": name, "message": f"{name!r} is missing"})
                continue
            found = tensor.digest(reader)
            if found == entry.sha256:
                equal += 1
            else:
                message = f"{name!r} has SHA-256 {found}, the manifest says {entry.sha256}"
                differences.append({"tensor": name, "message": message})
            reader.release(tensor.source)
            done += tensor.source.size_bytes
            watch.report(Progress("verifying tensors", done, total))
    return equal


def against_base(request: VerifyRequest, context: JobContext, watch: WriteHooks) -> dict[str, Any]:
    """The model against its base with the adapters, by arithmetic and by its logits."""
    store = context.store
    assert request.base is not None
    folder = store.path(request.model)
    adapters = [(choice.name, store.path(choice.name), choice.scale) for choice in request.adapters]
    claim = expected_merge(store.path(request.base), adapters, VERIFIED_FORMATS[kind_of_folder(folder)])
    return verify_model(folder, claim, watch)
