"""The OpenAPI document: operations as flask-openapi3 collects them, schemas exactly as pydantic writes them."""

from http import HTTPStatus
from typing import Any

from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from services.kinds import KINDS

REF_TEMPLATE = "#/components/schemas/{model}"

DESCRIPTION = (
    "Turns base models and LoRA adapters into merged, verified models. Submit a job, follow it, "
    "use the model that it makes. Errors are `application/problem+json` with a stable `code`."
)

SECURITY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}

SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"key": []}, {}]
"""A key, or none if the API has no keys."""

JOB_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobBody"},
                "examples": {kind: row.request.example for kind, row in KINDS.items()},
            }
        },
    }
}


def _content(mimetype: str, description: str, **schema: str) -> dict[str, Any]:
    return {"description": description, "content": {mimetype: {"schema": schema}}}


JOB_STREAM = _content(
    "text/event-stream", "Events `status`, `progress` and `token`, each with an id.", type="string"
)
PLAIN_TEXT = _content("text/plain", "Lines of text.", type="string")
METRICS = _content("text/plain", "Prometheus' text format.", type="string")
FILE = _content("application/octet-stream", "The file's bytes.", type="string", format="binary")
TAR = _content("application/x-tar", "A tar archive.", type="string", format="binary")
PLAN_OR_JOB: dict[str, Any] = {
    "description": "The plan of a dry run, or the job that has ended (`Prefer: wait=N`).",
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Plan", "JobResponse")]
            }
        }
    },
}
UPLOADED: dict[str, Any] = {"description": "The upload's address is in `Location`."}
OFFSET_BODY: dict[str, Any] = {
    "requestBody": {
        "content": {"application/offset+octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    }
}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Returns the part of the document about a request body of this model, which `complete` must receive too."""
    schema = {"$ref": REF_TEMPLATE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def object_of(*statuses: int) -> dict[str | int | HTTPStatus, Any]:
    """Returns the part of the document about responses that are JSON objects of OpenAI's API."""
    content = {"application/json": {"schema": {"type": "object"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def complete(app: OpenAPI, bodies: list[type[BaseModel]], returned: list[type[BaseModel]]) -> None:
    """Writes the schemas of the request bodies and of the returned models into the document of `app`.

    flask-openapi3 passes schemas through its own model, which loses keywords (`examples`, `propertyNames`).
    """
    modes: list[tuple[type[BaseModel], JsonSchemaMode]] = [(body, "validation") for body in bodies]
    modes += [(model, "serialization") for model in returned]
    _, schemas = models_json_schema(modes, ref_template=REF_TEMPLATE)
    app.api_doc["components"]["schemas"] = schemas["$defs"]
    for operations in app.api_doc["paths"].values():
        for operation in operations.values():
            _drop_default_422(operation["responses"])
            operation["description"] = _as_markdown(operation.get("description", ""))


def _as_markdown(description: str) -> str:
    # flask-openapi3 joins the lines of a docstring with tags
    return description.replace("<br/>", "\n").strip()


def _drop_default_422(responses: dict[str, Any]) -> None:
    # flask-openapi3 adds its own 422 to each view that names none: such views have nothing to validate
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]
