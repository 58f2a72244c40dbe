"""Generating: load a model, build prompts, answer many of them at once, score texts. Knows no queue and no store."""

from services.generate.embedding import embed
from services.generate.engine import Engine
from services.generate.loading import LoadedModel, load_model, resolve_device
from services.generate.perplexity import Score, Window, perplexity, score_window, window_sizes, windows_of
from services.generate.prompts import BuiltPrompt, build_prompt
from services.generate.request import (
    AnswerFailed,
    AnswerFinished,
    Completion,
    Event,
    GenerationRequest,
    TokenGenerated,
    TokenLogprob,
)
from services.generate.run import GenerationResult, PromptResult, generate
from services.generate.truncation import build_fitting

__all__ = [
    "AnswerFailed",
    "AnswerFinished",
    "BuiltPrompt",
    "Completion",
    "Engine",
    "Event",
    "GenerationRequest",
    "GenerationResult",
    "LoadedModel",
    "PromptResult",
    "Score",
    "TokenGenerated",
    "TokenLogprob",
    "Window",
    "build_fitting",
    "build_prompt",
    "embed",
    "generate",
    "load_model",
    "perplexity",
    "resolve_device",
    "score_window",
    "window_sizes",
    "windows_of",
]
