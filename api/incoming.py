"""Files that people have put on the volume, for imports."""

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from api.errors import problems
from api.openapi import SECURITY
from api.responses import json_response
from api.state import state
from services.models.incoming import IncomingList
from services.preflight.incoming_reader import read_incoming
from services.preflight.isolated import header_processes

api = APIBlueprint(
    "incoming",
    __name__,
    url_prefix="/api",
    abp_tags=[Tag(name="models")],
    abp_security=SECURITY,
    abp_responses=problems(400, 401, 403, 429, 500),
)


@api.get("/incoming", responses={200: IncomingList, **problems(422, 503)})
def incoming() -> Response:
    """List what lies in `incoming/` on the volume.

    A folder that looks like a model is one entry, any other is followed by its contents. Each path can be the source of an
    import: `{"zip": path}` for an archive, else `{"path": path}`.
    """
    limit = state().settings.unpack_limit_bytes
    return json_response(read_incoming(state().store, header_processes(), unpack_limit_bytes=limit))
