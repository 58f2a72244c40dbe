"""The OpenAPI document: what flask-openapi3 finds in the views, with the shapes exactly as pydantic tells them."""

from http import HTTPStatus
from typing import Any

from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

REF_TEMPLATE = "#/components/schemas/{model}"

DESCRIPTION = (
    "Turns original LLaMA-family weights and LoRA adapters into merged, verified models. Submit a job, follow it, "
    "use the model that it makes. Errors are `application/problem+json` with a stable `code`."
)

SECURITY_SCHEMES: dict[str, Any] = {"bearer": {"type": "http", "scheme": "bearer"}}

SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {}]
"""A key, or none where the API has none."""

EXAMPLES: dict[str, Any] = {
    "import": {
        "summary": "Take the files of a folder on the volume as a model",
        "value": {"kind": "import", "source": {"path": "incoming/llama"}, "target": "llama-7b-original"},
    },
    "convert": {
        "summary": "Convert an original checkpoint",
        "value": {"kind": "convert", "source": "llama-7b-original", "target": "llama-7b"},
    },
    "merge": {
        "summary": "Merge two adapters, in this order",
        "value": {
            "kind": "merge",
            "base": "llama-7b",
            "adapters": ["chinese-llama-lora", "chinese-alpaca-lora"],
            "target": "chinese-alpaca-7b",
        },
    },
    "generate": {
        "summary": "Generate text",
        "value": {
            "kind": "generate",
            "model": "chinese-alpaca-7b",
            "prompt": "Tell me about alpacas.",
            "template": "alpaca",
            "sampling": {"temperature": 0, "max_new_tokens": 64},
        },
    },
    "compare": {
        "summary": "Ask a base, the base with an adapter on the fly and a merged model the same",
        "value": {
            "kind": "compare",
            "variants": [
                {"model": "llama-7b"},
                {"model": "llama-7b", "adapters": ["chinese-llama-lora", "chinese-alpaca-lora"]},
                {"model": "chinese-alpaca-7b", "label": "merged"},
            ],
            "prompt": "Tell me about alpacas.",
            "template": "alpaca",
            "sampling": {"seed": 7, "max_new_tokens": 64},
        },
    },
    "embed": {
        "summary": "Turn texts into vectors",
        "value": {"kind": "embed", "model": "chinese-alpaca-7b", "inputs": ["Tell me about alpacas."]},
    },
    "perplexity": {
        "summary": "Score a text with a base and adapters on the fly",
        "value": {
            "kind": "perplexity",
            "model": "llama-7b",
            "adapters": ["chinese-llama-lora", "chinese-alpaca-lora"],
            "text_file": "incoming/held-out.txt",
        },
    },
    "extend-tokenizer": {
        "summary": "Append Chinese pieces to LLaMA's vocabulary",
        "value": {
            "kind": "extend-tokenizer",
            "base": "llama-7b",
            "addition": "chinese-sp",
            "target": "chinese-alpaca-tokenizer",
            "pad_token": "[PAD]",
        },
    },
    "verify": {
        "summary": "Check a model against what it was merged from",
        "value": {
            "kind": "verify",
            "model": "chinese-alpaca-7b",
            "base": "llama-7b",
            "adapters": ["chinese-llama-lora", "chinese-alpaca-lora"],
        },
    },
}
"""One request of each kind (a test parses them)."""

JOB_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/JobBody"}, "examples": EXAMPLES}
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


def body_of(shape: type[BaseModel]) -> dict[str, Any]:
    """What the document says about a body of this shape, which `complete` must be given."""
    schema = {"$ref": REF_TEMPLATE.format(model=shape.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def object_of(*statuses: int) -> dict[str | int | HTTPStatus, Any]:
    """Answers that are a JSON object in a shape of OpenAI's."""
    content = {"application/json": {"schema": {"type": "object"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def complete(app: OpenAPI, bodies: list[type[BaseModel]], shapes: list[type[BaseModel]]) -> None:
    """Puts the schemas of the request bodies and of the responses into the document of `app`.

    flask-openapi3 passes schemas through a model of its own that loses keywords (`examples`, `propertyNames`).
    """
    modes: list[tuple[type[BaseModel], JsonSchemaMode]] = [(body, "validation") for body in bodies]
    modes += [(shape, "serialization") for shape in shapes]
    _, schemas = models_json_schema(modes, ref_template=REF_TEMPLATE)
    app.api_doc["components"]["schemas"] = schemas["$defs"]
    for operations in app.api_doc["paths"].values():
        for operation in operations.values():
            _drop_invented_422(operation["responses"])
            operation["description"] = _as_markdown(operation.get("description", ""))


def _as_markdown(description: str) -> str:
    # flask-openapi3 joins the lines of a docstring with tags
    return description.replace("<br/>", "\n").strip()


def _drop_invented_422(responses: dict[str, Any]) -> None:
    # flask-openapi3 adds one, in its own shape, wherever a view names none: such views have nothing to validate
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]
