"""Questions that every library is asked, tools that it offers, a tool's result, and the form of its structured output."""

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
                "properties": {
                    "city": {"type": "string", "minLength": 2, "maxLength": 20},
                    "unit": {"enum": ["celsius", "fahrenheit"]},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "unit", "days"],
                "additionalProperties": False,
            },
        },
    }
]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
RAIN = "It rains in Paris, at 12 degrees."


class Answer(BaseModel):
    """Form of the structured output."""

    city: str = Field(max_length=20)
    population: int = Field(ge=0, le=100_000_000)
