"""Questions that every library is asked, tools that it offers, and the form of its structured output."""

from typing import Any

from pydantic import BaseModel, Field

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Gives the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


class Answer(BaseModel):
    """Form of the structured output."""

    city: str = Field(max_length=20)
    population: int = Field(ge=0, le=100_000_000)
