"""`verify`: a model is checked against its manifest, and against the models that it was made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.checkpoints.readback import StoredTensor, tensors_of
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import GraftwerkError
from services.kinds.verify import Difference, VerifyRequest, VerifyResult
from services.models.digests import digest_file
from services.models.manifest import MANIFEST_NAME, Manifest, read_manifest
from services.models.summary import kind_of_folder
from services.preflight.output import FORMAT_OF_KIND
from services.preflight.verify import base_precision_of
from services.progress import Progress
from services.verify import ModelVerification, expected_merge, verify_model
from worker.lifecycle import JobContext
from worker.models.publish import planned


def run(request: VerifyRequest, context: JobContext) -> VerifyResult:
    """Returns the report; `passed` is the verdict, `differences` are its reasons."""
    planned(request, context)
    folder = context.store.path(request.model)
    hooks = WriteHooks(context.execution.report, context.execution.check_canceled)
    manifest = read_manifest(folder)
    recorded = against_manifest(folder, manifest, hooks) if manifest is not None else {}
    computed = against_base(request, context, hooks) if request.base is not None else None
    differences = [*recorded.pop("differences", []), *(computed.differences if computed else [])]
    against = [name for name, found in (("manifest", recorded), ("base and adapters", computed)) if found]
    checks = dict(computed.checks) if computed else {}
    return VerifyResult(
        model=request.model,
        against=against,
        **recorded,
        **checks,
        passed=not differences,
        differences=differences,
    )


def against_manifest(folder: Path, manifest: Manifest, hooks: WriteHooks) -> dict[str, Any]:
    """Returns the report on every tensor and file that has a digest in the manifest, read again."""
    differences: list[Difference] = []
    stored = _stored(folder, differences) if manifest.tensors else {}
    tensors = _changed_tensors(stored, manifest, hooks, differences) if stored else 0
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    _changed_files(folder, names, manifest, hooks, differences)
    # the files that hold the manifest's tensors: their content is checked tensor by tensor
    weights = {part.path.name for tensor in stored.values() for part in tensor.source.parts}
    unlisted = sorted(names - set(manifest.files) - weights - {MANIFEST_NAME})
    return {
        "digests_equal": tensors, "files": len(manifest.files),
        "unlisted_files": unlisted, "differences": differences,
    }  # fmt: skip


def _stored(folder: Path, differences: list[Difference]) -> dict[str, StoredTensor]:
    """Returns the model's tensors; none if it cannot be read any more, which is a difference."""
    try:
        return tensors_of(folder)
    except GraftwerkError as error:
        differences.append(Difference(file=folder.name, message=f"the model cannot be read: {error.message}"))
        return {}


def _changed_files(
    folder: Path, names: set[str], manifest: Manifest, hooks: WriteHooks, differences: list[Difference]
) -> None:
    total = sum((folder / name).stat().st_size for name in manifest.files if name in names)
    done = 0
    for name, digest in manifest.files.items():
        hooks.check_canceled()
        hooks.report(Progress("verifying files", done, total))
        if name not in names:
            differences.append(Difference(file=name, message=f"{name} is missing"))
            continue
        done += (folder / name).stat().st_size
        found = digest_file(folder / name)
        if found != digest:
            message = f"{name} has SHA-256 {found}, the manifest says {digest}"
            differences.append(Difference(file=name, message=message))


def _changed_tensors(
    stored: Mapping[str, StoredTensor], manifest: Manifest, hooks: WriteHooks, differences: list[Difference]
) -> int:
    """Returns the number of tensors whose digest is the manifest's; the others are added to the differences."""
    total, done, equal = sum(tensor.source.size_bytes for tensor in stored.values()), 0, 0
    for name in sorted(stored.keys() - manifest.tensors.keys()):
        differences.append(Difference(tensor=name, message=f"{name!r} is not in the manifest"))
    with TensorReader() as reader:
        for name, entry in manifest.tensors.items():
            hooks.check_canceled()
            tensor = stored.get(name)
            if tensor is None:
                differences.append(Difference(tensor=name, message=f"{name!r} is missing"))
                continue
            found = tensor.digest(reader)
            if found == entry.sha256:
                equal += 1
            else:
                message = f"{name!r} has SHA-256 {found}, the manifest says {entry.sha256}"
                differences.append(Difference(tensor=name, message=message))
            reader.release(tensor.source)
            done += tensor.source.size_bytes
            hooks.report(Progress("verifying tensors", done, total))
    return equal


def against_base(request: VerifyRequest, context: JobContext, hooks: WriteHooks) -> ModelVerification:
    """Returns the report on the model against its base with the adapters, by arithmetic and by its logits."""
    store = context.store
    assert request.base is not None
    folder = store.path(request.model)
    adapters = [(choice.name, store.path(choice.name), choice.scale) for choice in request.adapters]
    merge = expected_merge(
        store.path(request.base), adapters, FORMAT_OF_KIND[kind_of_folder(folder)], base_precision_of(folder)
    )
    return verify_model(folder, merge, hooks)
