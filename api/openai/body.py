"""Root of the request bodies under /v1: null is the same as absent, and an unknown parameter is an error."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from api.openai.errors import InvalidParameter
from api.openai.parameters import IGNORED, requests_nothing

NAMES: Mapping[str, str] = {"max_new_tokens": "max_tokens", "inputs": "input", "prompts": "prompt"}
"""Fields of our requests whose parameter has another name here."""

B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """Root of request bodies and of the objects in them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ignored: ClassVar[frozenset[str]] = IGNORED
    """Parameters that are dropped, whichever value they have."""

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: item
            for name, item in value.items()
            if name not in cls.ignored and not requests_nothing(name, item)
        }


def parse(body_type: type[B], value: Any) -> B:
    """Returns the body in a JSON value.

    Raises:
        InvalidParameter: a parameter is wrong, unknown or not supported.
    """
    try:
        return body_type.model_validate(value)
    except ValidationError as error:
        raise InvalidParameter.of(error, NAMES) from error
