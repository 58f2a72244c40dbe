"""Fields that are left out of the JSON of pydantic models, and the reasons of their refusals."""

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from services.validation import is_none, reason_of


class Shape(BaseModel):
    newer: int | None = Field(default=None, exclude_if=is_none)
    size: int = 0

    @field_validator("size")
    @classmethod
    def _is_even(cls, size: int) -> int:
        if size % 2:
            raise ValueError(f"size must be even, not {size}")
        return size


def test_a_field_without_a_value_is_left_out() -> None:
    assert Shape().model_dump_json() == '{"size":0}'
    assert Shape(newer=0).model_dump_json() == '{"newer":0,"size":0}'


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (3, "size must be even, not 3"),
        ("x", "Input should be a valid integer, unable to parse string as an integer"),
    ],
)
def test_a_reason_is_what_the_validator_has_said(size: object, reason: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Shape.model_validate({"size": size})
    assert [reason_of(found["msg"]) for found in refused.value.errors()] == [reason]
