"""Tools of a request and the choice among them, and the same in a chat."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field

from api.openai.body import Body, tag_of, tagged
from api.openai.responses_api.items import Json
from services.kinds.tools import OtherTool


class FunctionTool(Body):
    """A function that the model may call."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def chat_tool(self) -> Json:
        """The tool of a chat."""
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


Tool = Annotated[
    Annotated[FunctionTool, tagged("function")] | Annotated[OtherTool, tagged("other")],
    Discriminator(lambda value: "[of function]" if tag_of(value) == "[of function]" else "[of other]"),
]


class FunctionChoice(Body):
    """The one function that is to be called."""

    type: Literal["function"]
    name: str


class AllowedTools(Body):
    """Some of the tools, and if one is to be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Field(max_length=1000)]

    @property
    def names(self) -> set[Any]:
        """Names of the functions."""
        return {tool.get("name") for tool in self.tools if tool.get("type") == "function"}


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], tagged("word")]
    | Annotated[FunctionChoice, tagged("function")]
    | Annotated[AllowedTools, tagged("allowed_tools")],
    Discriminator(
        lambda value: "[of word]" if isinstance(value, str) else tag_of(value),
        custom_error_type="unknown_choice",
        custom_error_message='Only a function can be called: send "none", "auto", "required", a function or allowed_tools',
    ),
]


def functions(tools: Sequence[Tool]) -> list[FunctionTool]:
    """Returns the tools that are functions."""
    return [tool for tool in tools if isinstance(tool, FunctionTool)]


def chat_tools(tools: Sequence[Tool], choice: ToolChoice) -> Json:
    """Returns the parameters `tools` and `tool_choice` of a chat."""
    offered = functions(tools)
    if isinstance(choice, AllowedTools):
        offered = [tool for tool in offered if tool.name in choice.names]
        return {"tools": [tool.chat_tool for tool in offered], "tool_choice": choice.mode}
    if isinstance(choice, FunctionChoice):
        named = {"type": "function", "function": {"name": choice.name}}
        return {"tools": [tool.chat_tool for tool in offered], "tool_choice": named}
    return {"tools": [tool.chat_tool for tool in offered], "tool_choice": choice}
