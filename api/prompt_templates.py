"""Prompt templates by name."""

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel

from api.errors import problems
from api.openapi import SECURITY
from api.responses import json_response
from services.templates.descriptions import TemplateDescription, describe_templates

api = APIBlueprint(
    "prompt_templates",
    __name__,
    url_prefix="/api",
    abp_tags=[Tag(name="models")],
    abp_security=SECURITY,
    abp_responses=problems(400, 401, 403, 429, 500),
)


class TemplateList(BaseModel):
    """The prompt templates, the model's own first."""

    templates: list[TemplateDescription]


@api.get("/templates", responses={200: TemplateList})
def templates() -> Response:
    """List the prompt templates, each with an example."""
    return json_response(TemplateList(templates=list(describe_templates())))
