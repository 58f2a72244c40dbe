"""Preflight of `publish-to-hub`: the files that it would upload."""

from services.errors import InvalidRequest
from services.kinds.publish_to_hub import PublishToHubRequest
from services.models.hub_publish import check_repository, require_token
from services.models.imports import list_folder
from services.preflight.import_ import MAX_LISTED_FILES
from services.preflight.plan import PROCESS_BYTES, Inputs, Plan, PlannedRead, deferred_plan


def plan(request: PublishToHubRequest, inputs: Inputs) -> Plan:
    """Returns the plan of an upload.

    Raises:
        HubDisabled: the Hub is off, or there is no token.
        InvalidRequest: the repository exists and is public, or the model holds no files.
        UnsafeArchive: a link points out of the model's folder.
        GraftwerkError: the Hub refuses, as `Hub.ask`.
    """
    require_token(inputs.hub)
    if inputs.waiting:
        return deferred_plan(request, inputs)
    members = list_folder(inputs.folders[request.model])
    if not members:
        raise InvalidRequest(f"{request.model!r} holds no files.", "Name another model.")
    check_repository(inputs.hub, request.repository, private=request.private)
    files = [PlannedRead(path=str(member.path), size_bytes=member.size_bytes) for member in members]
    return Plan(kind=request.kind, reads=files[:MAX_LISTED_FILES], peak_memory_bytes=PROCESS_BYTES)
