"""Descriptions of the prompt templates for people who choose one."""

from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ConfigDict, Field

from services.templates.rendering import render
from services.templates.resolution import OWN_TEMPLATE, RAW_TEMPLATE
from services.templates.table import TEMPLATES, Segment, Text

QUESTION = "What is grafting?"

DESCRIPTIONS: Mapping[str, str] = {
    OWN_TEMPLATE: "The chat template in the model's own files.",
    "alpaca": "Instructions as the inference scripts of Chinese-LLaMA-Alpaca (2023) wrote them.",
    "alpaca-train": "Instructions as the training script of Chinese-LLaMA-Alpaca (2023) wrote them.",
    "alpaca-chat": "Conversations with models of Chinese-LLaMA-Alpaca (2023).",
    "alpaca-2": "Chinese-LLaMA-Alpaca-2, with its system text in English and Chinese.",
    "llama-2": "Llama 2 Chat.",
    "llama-3": "Llama 3 Instruct.",
    "vicuna": "Vicuna 1.1 and models that were trained like it.",
    "chatml": "ChatML, the format of Qwen and of many fine-tuned models.",
    RAW_TEMPLATE: "No template: the model continues the text.",
}


class TemplateDescription(BaseModel):
    """A prompt template: its name in requests, its purpose, and a prompt in it."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(examples=["alpaca"])
    description: str
    default_system: str | None = Field(
        description="System text of prompts that name none; null for `model` and `raw`."
    )
    example: str | None = Field(
        description="Prompt of one question, with special tokens in angle brackets; null for `model`."
    )
    stop: list[str] = Field(description="Texts and special tokens that end a turn.")


def describe_templates() -> Iterator[TemplateDescription]:
    """Yields the description of every template, the model's own first."""
    for name, description in DESCRIPTIONS.items():
        row = TEMPLATES.get(name, TEMPLATES[RAW_TEMPLATE])
        has_turns = row.user != TEMPLATES[RAW_TEMPLATE].user
        example = "".join(map(_shown, render(name, instruction=QUESTION))) if name in TEMPLATES else None
        yield TemplateDescription(
            name=name,
            description=description,
            default_system=row.default_system if has_turns else None,
            example=example,
            stop=list(dict.fromkeys([*row.stop, *row.stop_pieces])),
        )


def _shown(segment: Segment) -> str:
    if isinstance(segment, Text):
        return segment.text
    return {"bos": "<s>", "eos": "</s>"}.get(segment.piece, segment.piece)
