"""The whole OpenAPI document against the application: each request is accepted or refused as documented."""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.api_client import client_of, import_request, put_model

LONGEST = 32
"""Length to which texts and lists are limited: the document's own maximum lengths take gigabytes."""

EXAMPLES = 20
"""Requests of each operation."""

REFUSALS_FOR_A_WHILE = (503, 507)

ENDLESS = "/api/events"
"""Path of the stream of all jobs, which never ends."""


def not_a_failure(context: Any, response: Any, case: Any) -> None:
    """Refuses errors of the server, except documented refusals for a while: there is no worker, no Hub."""
    assert response.status_code < 500 or response.status_code in REFUSALS_FOR_A_WHILE, response.text


def clamp(value: Any) -> None:
    """Lowers the maximum lengths in a part of the document, in place."""
    if isinstance(value, dict):
        for name in ("maxLength", "maxItems"):
            if isinstance(value.get(name), int):
                value[name] = min(value[name], LONGEST)
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        clamp(child)


CHECKS = (
    not_a_failure, status_code_conformance, content_type_conformance, response_schema_conformance, unsupported_method,
)  # fmt: skip


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Bounds the memory of the generated requests."""
    clamp(raw_schema)


@schemathesis.serializer("application/offset+octet-stream")
def octets(context: Any, value: Any) -> bytes:
    """Returns the body of an upload."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture
def operations(tmp_path: Path) -> list[Any]:
    """All operations of the document, on a volume with a damaged model and something to import."""
    put_model(tmp_path, "m", {"adapter_config.json": "{}", "config.json": "[]"})
    import_request(tmp_path)
    document = schemathesis.openapi.from_wsgi("/openapi.json", client_of(tmp_path).application)
    return [found.ok() for found in document.get_all_operations()]


def send(operations: list[Any], mode: GenerationMode) -> tuple[Counter[str], Counter[int]]:
    """Sends generated requests of each operation and returns how many there were, and the statuses of the responses."""
    cases, statuses = Counter[str](), Counter[int]()
    for operation in operations:
        if operation.path == ENDLESS:
            continue

        @given(case=operation.as_strategy(mode))
        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def check(case: Any) -> None:
            cases[case.operation.label] += 1
            statuses[case.call_and_validate(checks=CHECKS).status_code] += 1

        with suppress(Unsatisfiable):  # nothing in the request can be invalid
            check()
    return cases, statuses


def test_every_valid_request_is_answered_as_documented(operations: list[Any]) -> None:
    cases, statuses = send(operations, GenerationMode.POSITIVE)
    assert len(cases) == len(operations) - 1
    assert cases.total() > 5 * len(cases)
    assert {200, 404, 422} <= set(statuses), statuses


def test_every_invalid_request_is_refused_as_documented(operations: list[Any]) -> None:
    """Values of wrong types, missing and unknown fields, in paths, parameters, headers and bodies."""
    cases, statuses = send(operations, GenerationMode.NEGATIVE)
    bodies = {
        found.label
        for found in operations
        if any(body.media_type == "application/json" for body in found.body)
    }
    assert len(bodies) > 4
    assert bodies <= set(cases), "each operation with a body in JSON has invalid ones"
    assert cases.total() > 10 * len(cases)
    assert {400, 404, 422} == set(statuses), statuses
