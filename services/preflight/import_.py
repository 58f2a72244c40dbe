"""Imports: the files that one would take."""

from services.errors import (
    InvalidRequest,
    UnsupportedOption,
)
from services.kinds.import_ import HubSource, ImportRequest, PathSource
from services.models.imports import Member, list_archive, list_folder
from services.models.store import ModelStore
from services.preflight.plan import PROCESS_BYTES, Plan
from services.settings import Settings


def import_source(request: ImportRequest, store: ModelStore, *, limit_bytes: int) -> list[Member]:
    """The files that an import would take.

    Raises:
        UnsupportedOption: a hub source.
        SourceNotFound, InvalidName, UnsafeArchive, UnreadableFile, InvalidRequest.
    """
    source = request.source
    if isinstance(source, HubSource):
        raise UnsupportedOption(
            "imports from a model hub are not offered by this version",
            "Download the files yourself and put them into incoming/ on the model volume.",
        )
    path = store.incoming(source.path if isinstance(source, PathSource) else source.zip)
    if isinstance(source, PathSource):
        if path.suffix == ".zip":
            raise InvalidRequest(
                f"{source.path!r} is an archive and was given as a path", f'Use {{"zip": "{source.path}"}}.'
            )
        members = list_folder(path)
    elif path.is_dir():
        raise InvalidRequest(
            f"{source.zip!r} is a folder and was given as an archive", f'Use {{"path": "{source.zip}"}}.'
        )
    else:
        members = list_archive(path, limit_bytes=limit_bytes)
    if not members:
        raise InvalidRequest(f"{path.name} holds no files", "Put the model's files there first.")
    return members


def plan_import(request: ImportRequest, store: ModelStore) -> Plan:
    members = import_source(request, store, limit_bytes=Settings.model_fields["unpack_limit_bytes"].default)
    total = sum(member.size_bytes for member in members)
    return Plan(
        kind="import",
        reads=[{"path": str(member.path), "size_bytes": member.size_bytes} for member in members[:1000]],
        writes={"name": request.target, "files": len(members)},
        output_bytes=total,
        peak_memory_bytes=PROCESS_BYTES,
    )
