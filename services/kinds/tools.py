"""Tools that a model may call, and the variables of its own chat template."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from services.bounded_text import listed
from services.kinds.guidance import SCHEMA_CHARACTERS, SCHEMA_DEPTH, GuidedPromptOptions, depth
from services.kinds.shared import Result, Shape
from services.validation import is_none

TOOLS_LIMIT = 128
"""Most tools of a request, as in OpenAI's API."""

KWARGS_CHARACTERS = 10_000
"""Most characters of the variables of a chat template, as JSON."""

RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token"}
)
"""Variables of chat templates that a request sets by its own fields, or not at all."""


class ToolFunction(Shape):
    """A function: its name, its purpose, and its parameters as a JSON schema."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")
    description: str | None = Field(default=None, max_length=SCHEMA_CHARACTERS, exclude_if=is_none)
    parameters: dict[str, Any] | None = Field(default=None, exclude_if=is_none)
    strict: bool | None = Field(default=None, exclude_if=is_none)

    @property
    def schema_text(self) -> str:
        """The schema of the arguments as JSON, any object if there is none."""
        return json.dumps(self.parameters or {"type": "object"})

    @model_validator(mode="after")
    def _bounded_schema(self) -> Self:
        levels = depth(self.parameters)
        if levels > SCHEMA_DEPTH:
            raise ValueError(f"the parameters have {levels} levels; at most {SCHEMA_DEPTH} are accepted")
        if (length := len(self.schema_text)) > SCHEMA_CHARACTERS:
            raise ValueError(
                f"the parameters have {length} characters; at most {SCHEMA_CHARACTERS} are accepted"
            )
        return self


class Tool(Shape):
    """A function as a tool, in OpenAI's form."""

    type: Literal["function"]
    function: ToolFunction

    @property
    def json_value(self) -> dict[str, Any]:
        """The tool as chat templates read it, without the fields that were not given."""
        return self.model_dump(exclude_none=True)


class OtherTool(BaseModel):
    """A tool of a type that no model here calls; it is left out."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(max_length=100)


TOOL_TAGS = ("[of function]", "[of other]")
"""Tags of tools in pydantic's paths, where they are not names of fields."""


def _tag_of(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return TOOL_TAGS[0 if kind == "function" else 1]


AnyTool = Annotated[
    Annotated[Tool, Tag(TOOL_TAGS[0])] | Annotated[OtherTool, Tag(TOOL_TAGS[1])], Discriminator(_tag_of)
]


def other_types(tools: Iterable[object]) -> list[str]:
    """Returns the names under which tools of other types are reported as left out, `tools.web_search` for example."""
    return list(dict.fromkeys(f"tools.{tool.type}" for tool in tools if isinstance(tool, OtherTool)))


class NamedFunction(Shape):
    """Name of a function."""

    name: str


class NamedTool(Shape):
    """The one function that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class ToolCall(Result):
    """A call that the model wrote: the function's name, and its arguments as JSON text."""

    id: str
    name: str
    arguments: str


class ToolCallPiece(Result):
    """Part of a stream: call number `index` of an output, with new text of its arguments.

    `offset` counts the characters of its arguments before this piece; each piece has the id and the name.
    """

    index: int
    id: str
    name: str
    arguments: str
    offset: int = 0


class ToolOptions(GuidedPromptOptions):
    """Prompt, form and sampling of a request, the tools that it offers, and variables for the model's own template."""

    tools: Annotated[list[AnyTool], Field(max_length=TOOLS_LIMIT)] | None = Field(
        default=None,
        exclude_if=is_none,
        description="Functions that the model may call, described by its own chat template. Tools of other types are left out.",
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        default=None,
        exclude_if=is_none,
        description='"auto" (default): the model decides; "none": no tool is offered; "required", or a named function: the '
        "output is a call whose arguments the function's schema admits.",
    )
    parallel_tool_calls: bool | None = Field(
        default=None,
        exclude_if=is_none,
        description="false: an output ends after its first call.",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None,
        exclude_if=is_none,
        description='Variables for the model\'s own chat template, `{"enable_thinking": false}` for example.',
    )

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model may call."""
        if self.tool_choice == "none":
            return []
        functions = self.functions
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            return [tool for tool in functions if tool.function.name == name]
        return functions

    @property
    def functions(self) -> list[Tool]:
        """The tools that are functions."""
        return [tool for tool in self.tools or [] if isinstance(tool, Tool)]

    @property
    def other_tools(self) -> list[str]:
        """Names of the tools that are left out, `tools.web_search` for example."""
        return other_types(self.tools or [])

    @property
    def is_call_required(self) -> bool:
        """True if each output is a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def is_guided(self) -> bool:
        """True if the outputs have a form."""
        return self.is_call_required or super().is_guided

    @model_validator(mode="after")
    def _tools_are_consistent(self) -> Self:
        names = [tool.function.name for tool in self.functions]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"tools has two functions of the same name: {listed(twice)}")
        if not self.is_call_required:
            return self
        if not names:
            raise ValueError("tool_choice requires a call, and tools has no function")
        if not self.offered_tools:
            raise ValueError(f"tool_choice names a function that is not in tools, which has {listed(names)}")
        if self.schema_text is not None or self.guided_regex is not None:
            raise ValueError(
                "a required call determines the output: leave response_format and guided_regex out"
            )
        for option, reason in self._conflicts().items():
            raise ValueError(f"{option} is not available with a required call: {reason}")
        return self

    @model_validator(mode="after")
    def _bounded_variables(self) -> Self:
        given = self.chat_template_kwargs
        if given is None:
            return self
        reserved = sorted(RESERVED_VARIABLES & given.keys())
        if reserved:
            raise ValueError(
                f"chat_template_kwargs cannot set {listed(reserved)}: use the request's own fields"
            )
        if depth(given) > SCHEMA_DEPTH or len(json.dumps(given)) > KWARGS_CHARACTERS:
            raise ValueError(
                f"chat_template_kwargs has more than {SCHEMA_DEPTH} levels or {KWARGS_CHARACTERS} characters"
            )
        return self
