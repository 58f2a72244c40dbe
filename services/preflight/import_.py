"""Preflight of `import`: the files that it would copy."""

from services.errors import InvalidRequest, UnsupportedOption
from services.kinds.import_ import HubSource, ImportRequest, PathSource
from services.models.imports import Member, list_archive, list_folder
from services.models.store import ModelStore
from services.preflight.plan import PROCESS_BYTES, Inputs, Plan, PlannedRead, PlannedWrite

MAX_LISTED_FILES = 1000
"""Largest number of files that a plan lists."""


def import_source(request: ImportRequest, store: ModelStore, *, limit_bytes: int) -> list[Member]:
    """Returns the files that an import would copy.

    Args:
        limit_bytes: size that an archive may unpack to.

    Raises:
        UnsupportedOption: the source is on a model hub.
        InvalidRequest: the source is an archive given as a path, a folder given as an archive, or empty.
        SourceNotFound: nothing is there.
        InvalidName: the path leaves `incoming/`.
        UnsafeArchive, UnreadableFile: the archive is not accepted.
    """
    source = request.source
    if isinstance(source, HubSource):
        raise UnsupportedOption(
            "This version does not import from a model hub.",
            "Download the files yourself and put them into incoming/ on the model volume.",
        )
    path = store.incoming(source.path if isinstance(source, PathSource) else source.zip)
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


def plan(request: ImportRequest, inputs: Inputs) -> Plan:
    """Returns the plan of an import. Raises what `import_source` raises."""
    members = import_source(request, inputs.store, limit_bytes=inputs.limits.unpack_bytes)
    return Plan(
        kind=request.kind,
        reads=[
            PlannedRead(path=str(member.path), size_bytes=member.size_bytes)
            for member in members[:MAX_LISTED_FILES]
        ],
        writes=PlannedWrite(name=request.target, files=len(members)),
        output_bytes=sum(member.size_bytes for member in members),
        peak_memory_bytes=PROCESS_BYTES,
    )
