"""The client's models of requests and results have the fields of the service's."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import get_args

import graftwerk.request_parts as client_parts
import graftwerk.requests as client_requests
import pytest
from graftwerk import Client, ModelSummary
from graftwerk.inference_results import TokenPiece
from graftwerk.models import RESULTS
from graftwerk.service_models import (
    Dependents,
    HubModel,
    HubRepository,
    IncomingList,
    System,
    TemplateDescription,
)
from pydantic import BaseModel

from api.hub import HubModel as ServiceHubModel
from api.hub import HubRepository as ServiceHubRepository
from api.metrics import System as ServiceSystem
from api.models import Dependents as ServiceDependents
from services.kinds import KINDS, module_name
from services.kinds.generate import TokenPiece as ServicePiece
from services.kinds.model_summary import ModelSummary as ServiceModelSummary
from services.models.incoming import IncomingList as ServiceIncomingList
from services.sampling import Sampling
from services.templates.descriptions import TemplateDescription as ServiceTemplate

Pair = tuple[type[BaseModel], type[BaseModel]]


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def pairs(ours: type[BaseModel], theirs: type[BaseModel], seen: set[Pair]) -> None:
    """Collects a model of the client, its counterpart in the service, and those of their fields."""
    if (ours, theirs) in seen:
        return
    seen.add((ours, theirs))
    for name in ours.model_fields.keys() & theirs.model_fields.keys():
        parts = (list(models_in(side.model_fields[name].annotation)) for side in (ours, theirs))
        for pair in zip(*parts, strict=True):
            pairs(*pair, seen)


def fields(model: type[BaseModel]) -> Mapping[str, bool]:
    """Names of the fields, each with True if it is required."""
    return {name: field.is_required() for name, field in model.model_fields.items()}


def test_there_is_a_result_for_every_kind() -> None:
    assert set(RESULTS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_results_have_the_same_fields(kind: str) -> None:
    found: set[Pair] = set()
    pairs(RESULTS[kind], KINDS[kind].result, found)
    for ours, theirs in found:
        assert fields(ours) == fields(theirs), (ours, theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ModelSummary, ServiceModelSummary),
        (System, ServiceSystem),
        (Dependents, ServiceDependents),
        (IncomingList, ServiceIncomingList),
        (TemplateDescription, ServiceTemplate),
        (HubModel, ServiceHubModel),
        (HubRepository, ServiceHubRepository),
    ],
)
def test_models_the_system_and_the_hub_have_the_same_fields(
    ours: type[BaseModel], theirs: type[BaseModel]
) -> None:
    found: set[Pair] = set()
    pairs(ours, theirs, found)
    for one, other in found:
        missing = fields(other).keys() - fields(one).keys()
        assert missing <= {"type", "title", "status", "errors", "order"}, (one, other)
        assert {name: fields(other)[name] for name in fields(one)} == fields(one), (one, other)


def test_a_streamed_piece_has_the_same_fields() -> None:
    assert fields(TokenPiece) == fields(ServicePiece)


@pytest.mark.parametrize("kind", KINDS)
def test_requests_have_the_same_fields_and_a_method(kind: str) -> None:
    assert callable(getattr(Client, module_name(kind)))
    name = re.sub(r"(^|-)(\w)", lambda found: found[2].upper(), kind) + "Request"
    ours = getattr(client_requests, name)
    theirs = fields(KINDS[kind].request)
    assert set(ours.__annotations__) == set(theirs) - {"kind"}
    assert ours.__required_keys__ == {name for name, required in theirs.items() if required} - {"kind"}


def test_sampling_has_the_same_fields() -> None:
    assert set(client_parts.Sampling.__annotations__) == set(Sampling.model_fields)


TYPES = [
    node
    for module in (client_requests, client_parts)
    for node in ast.parse(inspect.getsource(module)).body
    if isinstance(node, ast.ClassDef)
]


@pytest.mark.parametrize("found", TYPES, ids=lambda found: found.name)
def test_every_field_of_a_request_is_documented_in_order(found: ast.ClassDef) -> None:
    _, _, text = (ast.get_docstring(found) or "").partition("Attributes:\n")
    documented = [line.strip().partition(":")[0] for line in text.splitlines()]
    assert documented == [ast.unparse(line.target) for line in found.body if isinstance(line, ast.AnnAssign)]
