"""Root of the request bodies under /v1: null is the same as absent, and an unknown parameter is an error."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError, model_validator

from api.openai.errors import InvalidParameter
from api.openai.parameters import IGNORED, NEUTRAL, requests_nothing

NAMES: Mapping[str, str] = {"max_new_tokens": "max_tokens", "inputs": "input", "prompts": "prompt"}
"""Fields of our requests whose parameter has another name here."""

B = TypeVar("B", bound="Body")
T = TypeVar("T")

TextOr = Annotated[
    Annotated[str, Tag("[text]")] | Annotated[T, Tag("[list]")],
    Discriminator(lambda value: "[text]" if isinstance(value, str) else "[list]"),
]
"""A text, or the list that it is short for: what is wrong in the list is not reported as a missing text too."""


def tagged(kind: str) -> Tag:
    """Returns the tag of an object in a union of objects with a `type`; it is not a part of a parameter's name."""
    return Tag(f"[of {kind}]")


def tag_of(value: Any, default: str = "") -> str:
    """Returns the tag of an object by its `type`; `default` is that of objects without one."""
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"[of {default if found is None else found}]"


class Body(BaseModel):
    """Root of request bodies and of the objects in them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ignored: ClassVar[frozenset[str]] = IGNORED
    """Parameters that are dropped, whichever value they have."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL
    """Values that request nothing; they are dropped too, as null is."""

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: item
            for name, item in value.items()
            if name not in cls.ignored and not requests_nothing(name, item, cls.neutral)
        }


def parse(body_type: type[B], value: Any, names: Mapping[str, str] = NAMES) -> B:
    """Returns the body in a JSON value; `names` are the parameters' names where they differ.

    Raises:
        InvalidParameter: a parameter is wrong, unknown or not supported.
    """
    if not isinstance(value, dict):
        raise InvalidParameter("", "The body must be a JSON object.")
    try:
        return body_type.model_validate(value)
    except ValidationError as error:
        raise InvalidParameter.of(error, names) from error
