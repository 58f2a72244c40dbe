"""Bodies of `POST /v1/messages` and `/v1/messages/count_tokens`, and the chat that they ask for."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.anthropic.blocks import Json, MessageParam, TextBlocks, chat_messages, text_of
from api.openai.body import Body, TextOr
from api.openai.schemas import ModelBody
from services.kinds.shared import MESSAGES_LIMIT
from services.sampling import STOP_LIMIT

NAMES: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
}
"""Parameters of a chat, and fields of a job, that have another name here."""

WITHOUT_EFFECT = (
    "cache_control", "diagnostics", "inference_geo", "metadata", "service_tier", "speed", "user_profile_id", "workspace_id",
)  # fmt: skip
"""Parameters that are left out, whichever value they have."""

LIKE_CHATS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
"""Parameters with the same name and meaning as in `POST /v1/chat/completions`."""


CHOICES = {"auto": "auto", "any": "required", "none": "none"}
"""Values of `tool_choice` of a chat by the type of Anthropic's."""

ENABLE_THINKING = {"enabled": True, "disabled": False}
"""Values of the templates' variable `enable_thinking` by the type of `thinking`; other types leave it to the template."""


class OutputFormat(Body):
    """Form of the output: JSON that a schema admits."""

    ignored: ClassVar[frozenset[str]] = frozenset()

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """Options of the output."""

    ignored: ClassVar[frozenset[str]] = frozenset({"effort"})

    format: OutputFormat | None = None


class Thinking(BaseModel):
    """Request to think before the answer, or not to."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]


class ToolChoice(Body):
    """Decision about calls of tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class MessagesTool(BaseModel):
    """A tool: one of the client, with the schema of its input, or one of Anthropic's, which is left out."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None

    @property
    def chat_tool(self) -> Json:
        """The tool of a chat."""
        function: Json = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function}


class ConversationBody(ModelBody):
    """The conversation of a request."""

    ignored: ClassVar[frozenset[str]] = frozenset(WITHOUT_EFFECT)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    messages: Annotated[list[MessageParam], Field(min_length=1, max_length=MESSAGES_LIMIT)]
    system: TextOr[TextBlocks] = ""
    tools: Annotated[list[MessagesTool], Field(max_length=1000)] = Field(default=[])
    tool_choice: ToolChoice = ToolChoice(type="auto")
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    template: str | None = Field(default=None, description="A prompt template, alpaca for example.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables for the model's own chat template."
    )

    def left_out(self, value: Json) -> list[str]:
        """Returns the names of the parameters of this body, as it was sent, that have no effect."""
        found = [name for name in WITHOUT_EFFECT if value.get(name) is not None]
        others = [f"tools.{tool.type}" for tool in self.tools if tool.input_schema is None]
        found += list(dict.fromkeys(others))
        is_left_out = self.thinking is not None and self.thinking.type not in ENABLE_THINKING
        return found + (["thinking"] if is_left_out else [])

    def tools_of_chat(self) -> Json:
        """Returns the parameters of a chat about tools and thinking."""
        choice: Any = CHOICES.get(self.tool_choice.type)
        if self.tool_choice.type == "tool":
            choice = {"type": "function", "function": {"name": self.tool_choice.name or ""}}
        variables: Json = {}
        if self.thinking is not None and self.thinking.type in ENABLE_THINKING:
            variables["enable_thinking"] = ENABLE_THINKING[self.thinking.type]
        return {
            "tools": [tool.chat_tool for tool in self.tools if tool.input_schema is not None],
            "tool_choice": choice,
            "parallel_tool_calls": False if self.tool_choice.disable_parallel_tool_use else None,
            "chat_template_kwargs": variables | (self.chat_template_kwargs or {}) or None,
        }

    def chat(self) -> Json:
        """Returns the body of a chat that only reads the conversation."""
        form = self.output_config.format
        schema = None if form is None else {"type": "json_schema", "json_schema": {"schema": form.schema_}}
        asked: Json = {
            "model": self.model,
            "messages": self.conversation(),
            "max_completion_tokens": 0,
            "response_format": schema,
            "template": self.template,
        }
        return asked | self.tools_of_chat()

    def conversation(self) -> list[Json]:
        """Returns the messages of a chat; system texts at the beginning are one."""
        first = next(
            (at for at, message in enumerate(self.messages) if message.role != "system"), len(self.messages)
        )
        texts = [text_of(self.system), *(text_of(message.content) for message in self.messages[:first])]
        system = "\n\n".join(text for text in texts if text)
        turns = chat_messages(self.messages[first:])
        return [{"role": "system", "content": system}, *turns] if system else turns


class CountTokensBody(ConversationBody):
    """Body of `POST /v1/messages/count_tokens`."""


class MessagesBody(ConversationBody):
    """Body of `POST /v1/messages`. The last four parameters are extensions of Graftwerk."""

    max_tokens: int = Field(
        ge=1, description="Upper bound of the new tokens; lowered to the room that the context leaves."
    )
    stop_sequences: Annotated[list[str], Field(max_length=STOP_LIMIT)] = Field(default=[])
    stream: bool = False
    temperature: float = 1
    top_p: float = 1
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1
    seed: int | None = None

    def chat(self) -> Json:
        """Returns the body of the chat."""
        own = {"max_completion_tokens": self.max_tokens, "stop": self.stop_sequences}
        return super().chat() | own | {name: getattr(self, name) for name in LIKE_CHATS}
