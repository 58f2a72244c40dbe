"""Server-sent events of the running product, read strictly by the types of an official client."""

from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter

from tests.e2e.product import Product

AnyEvent = TypeVar("AnyEvent")


def strict_events(
    product: Product, path: str, body: dict[str, Any], form: TypeAdapter[AnyEvent]
) -> list[AnyEvent]:
    """Returns the events of a stream, each of which must have the form and its own name; pings are left out."""
    found, name = [], None
    with httpx.stream("POST", f"{product.url}{path}", json=body | {"stream": True}, timeout=60) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: ") and name != "ping":
                event: Any = form.validate_json(line.removeprefix("data: "), strict=True)
                assert event.type == name
                found.append(event)
    return found
