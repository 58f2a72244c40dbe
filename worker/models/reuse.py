"""Reuse of an identical earlier result: its files are published under the new name, and nothing is computed."""

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from services.errors import UnreadableFile
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.kinds.shared import MakeRequest, OutputOptions
from services.models.digests import content_identity, digest_file
from services.models.manifest import (
    MANIFEST_NAME,
    Manifest,
    package_versions,
    read_manifest,
    write_manifest,
)
from services.models.store import ModelStore
from services.preflight import Plan
from services.progress import Progress
from worker.lifecycle import JobContext
from worker.models.publish import publishing, write_description

DECIDING_PACKAGES = ("graftwerk-service", "torch", "peft")
"""Distributions that compute: another version of one of these may give other bits."""

LEAST_LINKED_BYTES = 2**20
"""Smaller files are copied: people do edit a configuration in place."""


def made_or_linked(
    request: MakeRequest,
    plan: Plan,
    context: JobContext,
    identity: str,
    make: Callable[[Path], Manifest],
    *,
    resumes: bool = False,
) -> Manifest:
    """Publishes the target and returns its manifest: the files of an identical model if there is one, else what `make` makes.

    Args:
        make: Fills the staging folder and returns the manifest, which is written with the identity and a model card.
        resumes: `make` continues what a killed execution of this job has left in the folder.
    """
    forced = isinstance(request, OutputOptions) and request.force
    same = None if forced else find_identical(context.store, identity)
    with publishing(request, plan, context, take_over=resumes and same is None) as staging:
        if same is not None:
            return link_identical(same, staging, context)
        manifest = make(staging).model_copy(update={"identity": identity})
        return write_description(staging, manifest, context)


def request_identity(request: MakeRequest, options: object, store: ModelStore) -> str:
    """Returns one digest of everything that a result depends on: the content of its inputs, in order, and every option.

    Args:
        options: the options of the use case, distinguished by their `repr`.
    """
    contents = [content_identity(store.path(name)) for name in request.reads]
    more: list[object] = []
    if isinstance(request, MergeRequest):
        more = _more_of_merge(request)
    elif isinstance(request, ConvertRequest):
        more = _more_of_convert(request, store)
    if isinstance(request, OutputOptions):
        more = [*more, *imatrix_identity(request, store)]
    versions = {name: version for name, version in package_versions().items() if name in DECIDING_PACKAGES}
    facts = (request.kind, options, more, contents, sorted(versions.items()))
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def imatrix_identity(request: OutputOptions, store: ModelStore) -> tuple[str, ...]:
    """Returns the digest of what an importance matrix is computed or read from; nothing for a request without one."""
    if request.imatrix is None:
        return ()
    if request.imatrix.file is not None:
        return ("imatrix", digest_file(store.incoming(request.imatrix.file)))
    return ("imatrix of a text", digest_file(store.incoming(str(request.imatrix.text_file))))


def _more_of_convert(request: ConvertRequest, store: ModelStore) -> list[object]:
    """Returns the digest of the text that a conversion is measured with; nothing for one that is not."""
    if request.measure is None:
        return []
    return ["measure", digest_file(store.incoming(request.measure.text_file))]


def _more_of_merge(request: MergeRequest) -> list[object]:
    """Returns what a merge depends on in addition to its options; a base in full precision is as in versions that had no other."""
    more: list[object] = [request.verify, [choice.scale for choice in request.adapters]]
    if request.base_precision == "original" and not request.compare_precisions:
        return more
    return [*more, request.base_precision, request.compare_precisions, package_versions().get("bitsandbytes")]


def find_identical(store: ModelStore, identity: str) -> str | None:
    """Returns the model that a request of this identity has made, None if it is gone or was changed."""
    for name in store.names():
        folder = store.path(name)
        with suppress(UnreadableFile):  # a damaged manifest only matters to its own model
            manifest = read_manifest(folder)
            if manifest is not None and manifest.identity == identity and is_unchanged(folder):
                return name
    return None


def is_unchanged(folder: Path) -> bool:
    """Returns True if no file has changed since the manifest was written, by their times."""
    written_ns = (folder / MANIFEST_NAME).stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= written_ns for path in folder.rglob("*") if path.is_file())


def link_identical(same: str, staging: Path, context: JobContext) -> Manifest:
    """Fills the staging folder with the files of an identical model and returns the manifest written there.

    Its figures are those of the job that made the model, and `same_as` names it. Weight files are not copied: both
    names share one file.
    """
    folder = context.store.path(same)
    context.execution.log(
        f"{same} was made by the same request of the same inputs: nothing is computed (force computes it again)"
    )
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    for number, path in enumerate(files):
        context.execution.report(Progress("taking the same model", number, len(files), "files"))
        target = staging / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(path, target)
    manifest = read_manifest(folder)
    assert manifest is not None
    resumed = {"resumed": {"tensors": 0, "bytes": 0}} if "resumed" in manifest.result else {}
    figures = {**manifest.result, "same_as": same, **resumed}
    renewed = manifest.model_copy(update={"job_id": context.execution.job_id, "result": figures})
    write_manifest(staging, renewed)
    return renewed


def _link(path: Path, target: Path) -> None:
    if path.stat().st_size < LEAST_LINKED_BYTES:
        shutil.copy2(path, target)
        return
    try:
        os.link(path, target)
    except OSError:  # a file system without hard links, or with too many on this file
        shutil.copy2(path, target)
