"""Preflight of `import`: the files that it would copy or download."""

from collections.abc import Callable, Mapping

from services.errors import InvalidRequest
from services.kinds.import_ import HubSource, ImportRequest, PathSource, Source, UploadSource, ZipSource
from services.models.hub_selection import selection
from services.models.imports import Member, list_archive, list_folder
from services.models.store import ModelStore
from services.models.uploaded_files import UploadedFiles, uploaded_files
from services.preflight.plan import PROCESS_BYTES, Inputs, Plan, PlannedRead, PlannedWrite

MAX_LISTED_FILES = 1000
"""Largest number of files that a plan lists."""


def import_source(source: PathSource | ZipSource, store: ModelStore, *, limit_bytes: int) -> list[Member]:
    """Returns the files of a source on the volume.

    Args:
        limit_bytes: size that an archive may unpack to.

    Raises:
        InvalidRequest: the source is an archive given as a path, a folder given as an archive, or empty.
        SourceNotFound: nothing is there.
        InvalidName: the path leaves `incoming/`.
        UnsafeArchive, UnreadableFile: the archive is not accepted.
    """
    path = store.incoming(source.name)
    if isinstance(source, PathSource):
        if path.suffix == ".zip":
            raise InvalidRequest(
                f"{source.path!r} is an archive and was given as a path.", f'Use {{"zip": "{source.path}"}}.'
            )
        members = list_folder(path)
    elif path.is_dir():
        raise InvalidRequest(
            f"{source.zip!r} is a folder and was given as an archive.", f'Use {{"path": "{source.zip}"}}.'
        )
    else:
        members = list_archive(path, limit_bytes=limit_bytes)
    if not members:
        raise InvalidRequest(f"{path.name} holds no files.", "Put the model's files there first.")
    return members


def _of_volume(source: Source, inputs: Inputs) -> list[PlannedRead]:
    assert isinstance(source, PathSource | ZipSource)
    members = import_source(source, inputs.store, limit_bytes=inputs.limits.unpack_bytes)
    return [PlannedRead(path=str(member.path), size_bytes=member.size_bytes) for member in members]


def _of_hub(source: Source, inputs: Inputs) -> list[PlannedRead]:
    assert isinstance(source, HubSource)
    repository, files = selection(inputs.hub, source)
    return [
        PlannedRead(
            name=repository.name, path=file.path, commit=repository.commit, size_bytes=file.size_bytes
        )
        for file in files
    ]


def import_uploads(source: UploadSource, store: ModelStore, *, limit_bytes: int) -> UploadedFiles:
    """Returns the files that uploads make.

    Args:
        limit_bytes: size that an archive may unpack to.

    Raises:
        UploadNotFound: an upload is unknown or has expired.
        UploadUnfinished, InvalidRequest, UnsafeArchive, UnreadableFile: as `uploaded_files`.
    """
    return uploaded_files([store.uploads.get(found) for found in source.upload], limit_bytes=limit_bytes)


def _of_uploads(source: Source, inputs: Inputs) -> list[PlannedRead]:
    assert isinstance(source, UploadSource)
    files = import_uploads(source, inputs.store, limit_bytes=inputs.limits.unpack_bytes)
    return [
        PlannedRead(path=str(member.path), size_bytes=member.size_bytes, linked=member.is_linkable)
        for member in files.members
    ]


LISTINGS: Mapping[type[Source], Callable[[Source, Inputs], list[PlannedRead]]] = {
    PathSource: _of_volume,
    ZipSource: _of_volume,
    HubSource: _of_hub,
    UploadSource: _of_uploads,
}
"""Function that lists the files of each type of source."""


def plan(request: ImportRequest, inputs: Inputs) -> Plan:
    """Returns the plan of an import. Raises what the listing of its type of source raises."""
    files = LISTINGS[type(request.source)](request.source, inputs)
    return Plan(
        kind=request.kind,
        reads=files[:MAX_LISTED_FILES],
        writes=PlannedWrite(name=request.target, files=len(files)),
        output_bytes=sum(file.size_bytes or 0 for file in files),
        linked_bytes=sum(file.size_bytes or 0 for file in files if file.linked),
        peak_memory_bytes=PROCESS_BYTES,
    )
