"""Form of an output: free text, JSON by a schema, or a regular expression."""

import json
from typing import Any, Literal, NotRequired, Self

from pydantic import ConfigDict, Field, model_validator, with_config
from typing_extensions import TypedDict

from services.kinds.shared import PromptOptions, Shape
from services.validation import is_none

SCHEMA_CHARACTERS = 65_536
"""Most characters of a schema, as compact JSON."""

SCHEMA_DEPTH = 64
"""Most levels of a schema, as JSON."""


@with_config(ConfigDict(extra="forbid"))
class JsonSchema(TypedDict):
    """A JSON schema under OpenAI's names; it is always enforced, `strict` or not."""

    name: NotRequired[str]
    description: NotRequired[str | None]
    schema: dict[str, Any]
    strict: NotRequired[bool | None]


class ResponseFormat(Shape):
    """Form of the outputs: text, any JSON object, or JSON that a schema admits."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(default=None, exclude_if=is_none)

    @property
    def schema_text(self) -> str | None:
        """The schema as JSON; None for free text."""
        if self.type == "text":
            return None
        return json.dumps({"type": "object"} if self.json_schema is None else self.json_schema["schema"])

    @model_validator(mode="after")
    def _one_bounded_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema belongs to the type "json_schema", which needs it')
        if self.json_schema is None:
            return self
        levels = depth(self.json_schema["schema"])
        if levels > SCHEMA_DEPTH:
            raise ValueError(f"the schema has {levels} levels; at most {SCHEMA_DEPTH} are accepted")
        if (length := len(self.schema_text or "")) > SCHEMA_CHARACTERS:
            raise ValueError(f"the schema has {length} characters; at most {SCHEMA_CHARACTERS} are accepted")
        return self


class GuidedPromptOptions(PromptOptions):
    """Prompt, template and sampling of a request, and the form of its outputs."""

    response_format: ResponseFormat | None = Field(
        default=None,
        exclude_if=is_none,
        description='`{"type": "json_schema", "json_schema": {"name", "schema"}}`: JSON that the schema admits; '
        '`{"type": "json_object"}`: any JSON object; `{"type": "text"}`: free text.',
    )
    guided_regex: str | None = Field(
        default=None,
        min_length=1,
        max_length=10_000,
        exclude_if=is_none,
        description="A regular expression that each output matches as a whole.",
    )

    @property
    def schema_text(self) -> str | None:
        """The schema of the outputs as JSON; None if there is none."""
        return None if self.response_format is None else self.response_format.schema_text

    @property
    def is_guided(self) -> bool:
        """True if the outputs have a form."""
        return self.schema_text is not None or self.guided_regex is not None

    @model_validator(mode="after")
    def _form_is_alone(self) -> Self:
        if self.guided_regex is not None and self.schema_text is not None:
            raise ValueError(
                "response_format and guided_regex both determine the output: leave one of them out"
            )
        if self.guided_regex is None and self.schema_text is None:
            return self
        name = "guided_regex" if self.guided_regex is not None else "response_format"
        for option, reason in self._conflicts().items():
            raise ValueError(f"{option} is not available with {name}: {reason}")
        return self

    def _conflicts(self) -> dict[str, str]:
        """Returns the sampling options that can break the form, with reasons."""
        sampling = self.sampling
        conflicts = {
            "num_beams above 1": (sampling.num_beams > 1, "set it to 1"),
            "stop": (bool(sampling.stop), "it would cut the output within its form; leave it out"),
            "stop_token_ids": (
                bool(sampling.stop_token_ids),
                "they would cut the output within its form; leave them out",
            ),
            "min_new_tokens": (sampling.min_new_tokens > 0, "the form determines the end; leave it out"),
            "no_repeat_ngram_size": (
                sampling.no_repeat_ngram_size > 0,
                "it can forbid every token that continues the form; leave it out",
            ),
        }
        return {option: reason for option, (is_set, reason) in conflicts.items() if is_set}


def depth(value: Any) -> int:
    """Returns the number of levels of a JSON value, without recursion."""
    levels, level = 0, [value]
    while level:
        levels += 1
        inner = [
            item.values() if isinstance(item, dict) else item
            for item in level
            if isinstance(item, dict | list)
        ]
        level = [item for items in inner for item in items]
    return levels
