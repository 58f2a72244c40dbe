"""Generating: load a model, build prompts, answer many of them at once. Knows no queue and no store."""

from services.generate.embedding import embed
from services.generate.engine import Engine
from services.generate.loading import LoadedModel, load_model, resolve_device
from services.generate.prompts import BuiltPrompt, build_prompt
from services.generate.request import (
    AnswerFailed,
    AnswerFinished,
    Event,
    GenerationRequest,
    Output,
    TokenGenerated,
    TokenLogprob,
)
from services.generate.run import GenerationResult, PromptResult, generate

__all__ = [
    "AnswerFailed",
    "AnswerFinished",
    "BuiltPrompt",
    "Engine",
    "Event",
    "GenerationRequest",
    "GenerationResult",
    "LoadedModel",
    "Output",
    "PromptResult",
    "TokenGenerated",
    "TokenLogprob",
    "build_prompt",
    "embed",
    "generate",
    "load_model",
    "resolve_device",
]
